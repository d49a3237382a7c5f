mod families;
mod formats;
mod loading;
mod oracle;
mod prompts;
mod templates;
mod text;
mod tiny;

mod loading;
mod oracle;
mod prompts;

mod loading;
mod prompts;

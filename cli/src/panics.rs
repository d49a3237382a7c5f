//! What a panic says may quote a customer's prompt or key, so the log gets its place and nothing else.

use std::panic::PanicHookInfo;

/// Replaces the hook that prints messages. To be called once logging is set up.
pub fn log_without_messages() {
    std::panic::set_hook(Box::new(log));
}

fn log(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    tracing::error!(location, thread = thread.name().unwrap_or_default(), "panic");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging;
    use std::process::Command;

    const CHILD: &str = "LORIKEET_TEST_PANICS";
    const PROMPT: &str = "a prompt that nobody may read";

    /// Hook and log belong to the whole process, so the panic happens in one of its own.
    #[test]
    fn a_panic_is_logged_by_its_place_and_never_by_what_it_says() {
        if std::env::var_os(CHILD).is_some() {
            logging::init(logging::Format::Json);
            log_without_messages();
            let panicking = std::thread::Builder::new().name("doomed".into());
            let thread = panicking.spawn(|| panic!("cannot slice {PROMPT}")).expect("a thread");
            assert!(thread.join().is_err());
            return;
        }
        let this_test = std::thread::current().name().expect("a test's thread").to_owned();
        let child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", &this_test, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("it runs");
        let said = [child.stdout, child.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(child.status.success(), "{said}");
        assert!(said.contains(file!()) && said.contains("doomed"), "{said}");
        assert!(!said.contains(PROMPT), "{said}");
    }
}

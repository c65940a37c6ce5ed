//! Programs that are not ours and need not be there.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Says that a test could not run for lack of something: fatal under `PROFILER_TEST_STRICT=1`, else a line in
/// the file named by `PROFILER_TEST_SKIPS`, so that the runner can count it aloud.
pub fn skip(test: &str, lacking: &str) {
    assert!(
        std::env::var("PROFILER_TEST_STRICT").as_deref() != Ok("1"),
        "{test} cannot run: {lacking}"
    );
    eprintln!("SKIPPED {test}: {lacking}");
    if let Some(file) = std::env::var_os("PROFILER_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .expect("the file named by PROFILER_TEST_SKIPS opens");
        writeln!(file, "{test}: {lacking}").expect("a line is written");
    }
}

/// A program named by an environment variable, or else found under its usual name.
pub fn find(variable: &str, usual: Option<&str>) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let usual = usual?;
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {usual}")])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(found.stdout).ok()?;
    (!path.trim().is_empty()).then(|| path.trim().into())
}

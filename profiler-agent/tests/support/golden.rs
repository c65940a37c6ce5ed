//! Files under `tests/golden`, made anew by `BLESS=1`.

use std::path::Path;

/// Compares with the golden file of a name. A missing file is a failure, not a first run.
pub fn check(name: &str, actual: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var("BLESS").as_deref() == Ok("1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "a file of this repository")]
    let expected =
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; BLESS=1 makes it", path.display()));
    assert!(
        expected == actual,
        "{name} differs; BLESS=1 accepts this:\n{}",
        String::from_utf8_lossy(actual)
    );
}

//! The fuzz targets without a fuzzer: over the inputs that once failed, `fuzz/regressions/TARGET/`, and those that fuzzing begins with.
#![expect(clippy::disallowed_methods, reason = "reads the project's own files")]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "the targets are a crate of their own"
)]

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::path::Path;

#[test]
fn what_once_failed_holds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (name, target) in fuzz::TARGETS {
        target(&[]);
        target(&[0xff; 4096]);
        let seeds = std::fs::read_dir(fuzz.join("seeds").join(name)).unwrap();
        // A target that never failed has no folder.
        let regressions = std::fs::read_dir(fuzz.join("regressions").join(name));
        let mut replayed = 0;
        for entry in seeds.chain(regressions.into_iter().flatten()) {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            target(&std::fs::read(path).unwrap());
            replayed += 1;
        }
        assert!(replayed > 0, "{name}: nothing to run");
    }
}

//! The kernel object as it is kept: programs, maps, BTF and line information, without DWARF.
//!
//! LLVM derives BTF from DWARF, so the compiler must write both; nothing that loads the object reads
//! the DWARF. It is most of the bytes, and it changes with every compiler.

use anyhow::{Context as _, Result, ensure};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without what no loader reads.
pub(crate) fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder =
        Builder::read(object).context("bpf-linker wrote something that is not an ELF object")?;
    for section in builder.sections.iter_mut() {
        let name = section.name.to_vec();
        // Offsets in .BTF.ext are right as they stand, and loaders use them as they stand.
        section.delete = [&b".debug_"[..], b".rel.debug_", b".rel.BTF", b".llvm_addrsig"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    }
    // LLVM keeps the names of sections among those of symbols; the writer wants a table of their own.
    if !builder
        .sections
        .iter()
        .any(|section| matches!(section.data, SectionData::SectionString))
    {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    // Symbols of sections that are gone.
    builder.delete_orphans();
    let mut bytes = Vec::new();
    builder
        .write(&mut bytes)
        .context("cannot write the kernel object without its DWARF")?;
    ensure!(
        section_names(&bytes)?.iter().any(|name| name == ".BTF.ext"),
        "the kernel object has no BTF; is `--btf` missing?"
    );
    Ok(bytes)
}

/// Names of the sections, in order.
pub(crate) fn section_names(object: &[u8]) -> Result<Vec<String>> {
    let builder = Builder::read(object)?;
    Ok(builder
        .sections
        .iter()
        .map(|section| String::from_utf8_lossy(&section.name).into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn kept() -> Vec<u8> {
        fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../profiler-agent/src/sampling/profiler.bpf.o"
        ))
        .unwrap()
    }

    #[test]
    fn the_kept_object_is_whole_for_its_loader_and_has_no_dwarf() {
        let kept = kept();
        let names = section_names(&kept).unwrap();
        assert!(!names.iter().any(|name| name.contains("debug")), "{names:?}");
        let object = aya_obj::Object::parse(&kept).unwrap();
        assert!(!object.programs.is_empty());
        assert!(!object.maps.is_empty());
        assert!(object.btf.is_some());
        assert!(object.btf_ext.is_some());
    }

    #[test]
    fn stripping_twice_is_stripping_once() {
        let kept = kept();
        assert!(strip(&kept).unwrap() == kept);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(strip(b"not an object").is_err());
        assert!(strip(&kept()[..100]).is_err());
    }
}

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
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
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

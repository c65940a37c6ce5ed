//! The vDSO: code that the kernel maps into every process, the same image for all 64-bit ones. No file holds it.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
};

use super::maps;

/// Most bytes that are taken for the image; it is two pages long.
const MAX_LEN: u64 = 1 << 20;

/// A copy of this process's own vDSO as a file, for those who read ELF from files.
///
/// # Errors
///
/// Those of reading /proc/self/mem and of `memfd_create(2)`; `NotFound` when the kernel runs without a vDSO.
pub fn image() -> io::Result<File> {
    let (start, end) = maps::find(std::process::id(), "[vdso]").ok_or(io::ErrorKind::NotFound)?;
    let len = end.saturating_sub(start).min(MAX_LEN);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, start)?;
    let mut file = File::from(rustix::fs::memfd_create("vdso", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_an_elf_image() {
        let mut magic = [0; 4];
        image().unwrap().read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"\x7fELF");
    }
}

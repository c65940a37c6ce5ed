//! The vDSO: code that the kernel maps into every process, the same image for all 64-bit ones. No file holds it.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    sync::{Arc, OnceLock},
};

use super::{file::Image, maps};

/// Most bytes that are taken for the image; it is two pages long.
const MAX_LEN: u64 = 1 << 20;

/// The image.
#[derive(Debug)]
pub struct Vdso {
    /// A copy as a file, for those who read ELF from files.
    pub file: Arc<File>,
    /// Bytes of it.
    pub len: u64,
    /// GNU build ID.
    pub build_id: Vec<u8>,
}

/// This process's own vDSO, which is copied once; `None` when the kernel runs without, or memory cannot be read.
pub fn vdso() -> Option<&'static Vdso> {
    static VDSO: OnceLock<Option<Vdso>> = OnceLock::new();
    VDSO.get_or_init(|| {
        copy()
            .inspect_err(|error| tracing::debug!(%error, "there is no vDSO"))
            .ok()
    })
    .as_ref()
}

fn copy() -> io::Result<Vdso> {
    let (start, end) = maps::find(std::process::id(), "[vdso]").ok_or(io::ErrorKind::NotFound)?;
    let len = end.saturating_sub(start).min(MAX_LEN);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, start)?;
    let mut file = File::from(rustix::fs::memfd_create("vdso", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    let build_id = Image::read(&file).map(|image| image.build_id);
    Ok(Vdso {
        file: Arc::new(file),
        len,
        build_id: build_id.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_an_elf_image_with_a_build_id() {
        let vdso = vdso().unwrap();
        let mut magic = [0; 4];
        vdso.file.read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"\x7fELF");
        assert!(vdso.build_id.len() >= 8 && vdso.len >= 4096, "{vdso:?}");
    }
}

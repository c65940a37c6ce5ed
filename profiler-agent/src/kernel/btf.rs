//! Offsets of kernel structure fields, from the running kernel's own type information.
//!
//! Format: Documentation/bpf/btf.rst. A header, a list of types of variable length, a string table. Types are referred to
//! by their position in the list, from 1. aya parses BTF too, but keeps its members to itself; a handful of
//! look-ups needs no lasting memory here.

use std::{fs::File, io::Read as _, path::Path};

/// Where the kernel publishes its types.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Most bytes of type information that are read: three times what distribution kernels carry.
const MAX_LEN: u64 = 64 << 20;

/// How deep anonymous structures may nest in one another.
const MAX_NESTING: usize = 8;

/// Why an offset could not be learned.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel publishes no types.
    #[error(
        "the kernel has no type information at {KERNEL_BTF}; it must be built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    Missing(#[source] std::io::Error),
    /// Not the documented format.
    #[error("the type information at {KERNEL_BTF} is malformed")]
    Malformed,
    /// This kernel has no such structure.
    #[error("this kernel has no structure {0}")]
    NoStructure(String),
    /// This kernel's structure lacks the field.
    #[error("this kernel has no field {structure}.{field}")]
    NoField {
        /// The structure.
        structure: String,
        /// Its field.
        field: String,
    },
}

/// Type information of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Position of each type in `bytes`; number 0 is `void`.
    types: Vec<u32>,
}

/// Where a bit is: nowhere by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bit {
    /// Offset of its byte.
    pub byte: u32,
    /// Its value there; 0 is no bit.
    pub mask: u32,
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

impl Btf {
    /// Type information of the running kernel.
    ///
    /// # Errors
    ///
    /// [`BtfError::Missing`] or [`BtfError::Malformed`].
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        let file = File::open(Path::new(KERNEL_BTF)).map_err(BtfError::Missing)?;
        let mut bytes = Vec::new();
        file.take(MAX_LEN)
            .read_to_end(&mut bytes)
            .map_err(BtfError::Missing)?;
        Self::parse(bytes).ok_or(BtfError::Malformed)
    }

    /// Indexes `bytes`, one whole BTF image.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if bytes.first_chunk().map(|&magic| u16::from_le_bytes(magic)) != Some(MAGIC) {
            return None;
        }
        let header = usize::try_from(word(&bytes, 4)?).ok()?;
        let section = |at| usize::try_from(word(&bytes, at)?).ok();
        let (type_start, type_len) = (header.checked_add(section(8)?)?, section(12)?);
        let strings = header.checked_add(section(16)?)?;
        let end = type_start.checked_add(type_len)?;
        let mut types = vec![0];
        let mut at = type_start;
        while at < end {
            types.push(u32::try_from(at).ok()?);
            let info = word(&bytes, at + 4)?;
            let members = usize::try_from(info & 0xffff).ok()?;
            at += 12
                + match info >> 24 & 0x1f {
                    1 | 14 | 17 => 4, // int, var, decl tag
                    3 => 12,          // array
                    KIND_STRUCT | KIND_UNION => 12 * members,
                    15 | 19 => 12 * members, // datasec, enum64
                    6 | 13 => 8 * members,   // enum, function prototype
                    _ => 0,
                };
        }
        Some(Self {
            bytes,
            strings,
            types,
        })
    }

    /// Offset in bytes of `structure.field`; anonymous inner structures are looked through, as C does.
    ///
    /// # Errors
    ///
    /// [`BtfError::NoField`] when the kernel has no such structure or field.
    pub fn offset(&self, structure: &str, field: &str) -> Result<u32, BtfError> {
        self.offset_in_bits(structure, field).map(|bits| bits / 8)
    }

    /// Where the bit of a bit field of one bit is.
    ///
    /// # Errors
    ///
    /// [`BtfError::NoField`] when the kernel has no such structure or field.
    pub fn bit(&self, structure: &str, field: &str) -> Result<Bit, BtfError> {
        self.offset_in_bits(structure, field).map(|bits| Bit {
            byte: bits / 8,
            mask: 1 << (bits % 8),
        })
    }

    fn offset_in_bits(&self, structure: &str, field: &str) -> Result<u32, BtfError> {
        self.structures(structure)
            .find_map(|id| self.member(id, field.as_bytes(), MAX_NESTING))
            .ok_or_else(|| BtfError::NoField {
                structure: structure.into(),
                field: field.into(),
            })
    }

    /// Size in bytes of a structure.
    ///
    /// # Errors
    ///
    /// [`BtfError::NoStructure`].
    pub fn size(&self, structure: &str) -> Result<u32, BtfError> {
        self.structures(structure)
            .find_map(|id| word(&self.bytes, self.position(id)? + 8))
            .ok_or_else(|| BtfError::NoStructure(structure.into()))
    }

    /// The structures of a name; the kernel has two of a few.
    fn structures(&self, name: &str) -> impl Iterator<Item = usize> {
        (1..self.types.len()).filter(move |&id| {
            self.kind(id) == Some(KIND_STRUCT) && self.type_name(id) == Some(name.as_bytes())
        })
    }

    /// Offset in bits of a member of the structure or union `id`.
    fn member(&self, id: usize, field: &[u8], nesting: usize) -> Option<u32> {
        let nesting = nesting.checked_sub(1)?;
        if !matches!(self.kind(id), Some(KIND_STRUCT | KIND_UNION)) {
            return None;
        }
        let at = self.position(id)?;
        let info = word(&self.bytes, at + 4)?;
        // With the kind flag, the upper byte of an offset is the width of a bit field.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        (0..usize::try_from(info & 0xffff).ok()?).find_map(|index| {
            let member = at + 12 + 12 * index;
            let offset = word(&self.bytes, member + 8)? & mask;
            match self.string(word(&self.bytes, member)?)? {
                name if name == field => Some(offset),
                b"" => {
                    let inner = usize::try_from(word(&self.bytes, member + 4)?).ok()?;
                    offset.checked_add(self.member(inner, field, nesting)?)
                }
                _ => None,
            }
        })
    }

    fn position(&self, id: usize) -> Option<usize> {
        usize::try_from(*self.types.get(id)?).ok().filter(|&at| at != 0)
    }

    fn kind(&self, id: usize) -> Option<u32> {
        Some(word(&self.bytes, self.position(id)? + 4)? >> 24 & 0x1f)
    }

    fn type_name(&self, id: usize) -> Option<&[u8]> {
        self.string(word(&self.bytes, self.position(id)?)?)
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let start = self.strings.checked_add(usize::try_from(offset).ok()?)?;
        self.bytes.get(start..)?.split(|&byte| byte == 0).next()
    }
}

/// The 32-bit word at a position; BTF of a running kernel is in its byte order.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|&word| u32::from_ne_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_of_the_running_kernel() {
        let btf = Btf::of_running_kernel().unwrap();
        let pid = btf.offset("task_struct", "pid").unwrap();
        // The kernel declares `pid_t pid; pid_t tgid;` next to each other.
        assert_eq!(btf.offset("task_struct", "tgid").unwrap(), pid + 4);
        assert!(btf.offset("signal_struct", "live").unwrap() > 0);
        // 21 registers of 8 bytes.
        #[cfg(target_arch = "x86_64")]
        assert_eq!(btf.size("pt_regs").unwrap(), 168);
        assert!(matches!(
            btf.size("no_such_structure"),
            Err(BtfError::NoStructure(_))
        ));
        assert!(matches!(
            btf.offset("task_struct", "no_such_field"),
            Err(BtfError::NoField { .. })
        ));
    }

    #[test]
    fn a_truncated_image_gives_no_answer() {
        let whole = Btf::of_running_kernel().unwrap().bytes;
        for len in [0, 1, 23, 24, 1000, whole.len() / 2] {
            if let Some(btf) = Btf::parse(whole[..len].to_vec()) {
                assert!(btf.offset("task_struct", "pid").is_err());
            }
        }
    }
}

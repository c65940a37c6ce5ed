//! A segment: one request in one file, framed by a header that says how long it is, what it holds and how to tell that it is whole.
//!
//! ```text
//! 0        8       9    12        16        20      28       32      36      40
//! │ magic  │ packed │ 0  │ profiles │ length │ events │ size  │ crc of │ crc of │ body: size bytes │
//! │        │        │    │          │        │        │       │ body   │ header │                  │
//! ```
//! All numbers are little-endian. The header has a checksum of its own: the number of samples is known even when the body is not
//! whole, so that the ledger stays exact.

use prost::bytes::Bytes;

use crate::export::otlp::parcel::{Compression, Parcel};

/// Length of the header.
pub const HEADER_LEN: usize = 40;

/// Most bytes of a body: OTLP's limit of 64 MiB, which holds before compression, and what compression may add.
pub const MAX_BODY: usize = (64 << 20) + (1 << 20);

/// The last byte is the version.
const MAGIC: [u8; 8] = *b"PROFSEG\x01";

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How the body is compressed.
    pub compression: Compression,
    /// `Profile` messages in it.
    pub profiles: u32,
    /// Bytes before compression.
    pub length: u32,
    /// Samples in it.
    pub events: u64,
    /// Bytes of the body.
    pub size: u32,
    /// CRC-32 of the body.
    checksum: u32,
}

/// Why a segment is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends before its header does.
    #[error("it ends within its header")]
    NoHeader,
    /// It is of another version, or no segment at all.
    #[error("it is no segment of this version")]
    Foreign,
    /// The header is not what was written.
    #[error("its header is damaged")]
    Header,
    /// It is shorter or longer than its header says.
    #[error("it has {found} bytes instead of {expected}")]
    Length {
        /// By its header.
        expected: u64,
        /// In truth.
        found: u64,
    },
    /// The body is not what was written.
    #[error("its body is damaged")]
    Body,
}

/// Frames a request.
pub fn encode(parcel: &Parcel) -> Option<Vec<u8>> {
    let Parcel {
        body,
        compression,
        length,
        events,
        profiles,
    } = parcel;
    if body.len() > MAX_BODY {
        return None;
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[number(*compression), 0, 0, 0]);
    bytes.extend_from_slice(&profiles.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(*length).ok()?.to_le_bytes());
    bytes.extend_from_slice(&events.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(body);
    Some(bytes)
}

impl Header {
    /// Reads the header at the start of a segment.
    ///
    /// # Errors
    ///
    /// [`Damage`].
    pub fn read(bytes: &[u8]) -> Result<Self, Damage> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Damage::NoHeader)?;
        let (framed, checksum) = header.split_last_chunk::<4>().ok_or(Damage::NoHeader)?;
        if !framed.starts_with(&MAGIC) {
            return Err(Damage::Foreign);
        }
        if crc32fast::hash(framed) != u32::from_le_bytes(*checksum) {
            return Err(Damage::Header);
        }
        // Not used yet: a version that uses them is another one.
        if framed.get(9..12) != Some(&[0; 3]) {
            return Err(Damage::Header);
        }
        let u32_at = |at: usize| {
            let bytes = framed.get(at..).and_then(|rest| rest.first_chunk());
            bytes
                .map(|bytes| u32::from_le_bytes(*bytes))
                .ok_or(Damage::Header)
        };
        let u64_at = |at: usize| {
            let bytes = framed.get(at..).and_then(|rest| rest.first_chunk());
            bytes
                .map(|bytes| u64::from_le_bytes(*bytes))
                .ok_or(Damage::Header)
        };
        let packed = framed.get(8).copied();
        let compression = Compression::ALL
            .into_iter()
            .find(|compression| packed == Some(number(*compression)))
            .ok_or(Damage::Header)?;
        Ok(Self {
            compression,
            profiles: u32_at(12)?,
            length: u32_at(16)?,
            events: u64_at(20)?,
            size: u32_at(28)?,
            checksum: u32_at(32)?,
        })
    }

    /// Bytes of the whole segment.
    pub fn len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.size)
    }

    /// Whether the body has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }
}

/// Reads a whole segment.
///
/// # Errors
///
/// [`Damage`], whatever the bytes are.
pub fn decode(bytes: Vec<u8>) -> Result<Parcel, Damage> {
    let header = Header::read(&bytes)?;
    let found = bytes.len() as u64;
    if found != header.len() {
        return Err(Damage::Length {
            expected: header.len(),
            found,
        });
    }
    let body = Bytes::from(bytes).slice(HEADER_LEN..);
    if crc32fast::hash(&body) != header.checksum {
        return Err(Damage::Body);
    }
    Ok(Parcel {
        body,
        compression: header.compression,
        length: usize::try_from(header.length).unwrap_or(usize::MAX),
        events: header.events,
        profiles: header.profiles,
    })
}

/// How a compression is written. These numbers are on disks: they stay.
const fn number(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Gzip => 1,
        Compression::Zstd => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel() -> Parcel {
        Parcel {
            body: Bytes::from_static(b"twelve bytes"),
            compression: Compression::Gzip,
            length: 100,
            events: 7,
            profiles: 2,
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        for compression in Compression::ALL {
            let parcel = Parcel {
                compression,
                ..parcel()
            };
            assert_eq!(decode(encode(&parcel).unwrap()), Ok(parcel));
        }
    }

    /// These bytes are on disks.
    #[test]
    fn the_layout_stays() {
        let bytes = encode(&parcel()).unwrap();
        let expected = b"PROFSEG\x01\x01\0\0\0\x02\0\0\0\x64\0\0\0\x07\0\0\0\0\0\0\0\x0c\0\0\0";
        assert_eq!(bytes[..32], *expected);
        assert_eq!(bytes.len(), HEADER_LEN + 12);
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_seen() {
        let bytes = encode(&parcel()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(changed).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            let found = decode(bytes[..len].to_vec()).unwrap_err();
            assert_eq!(found == Damage::NoHeader, len < HEADER_LEN, "{len}: {found}");
        }
        let longer = [bytes, vec![0]].concat();
        assert!(matches!(decode(longer), Err(Damage::Length { .. })));
    }
}

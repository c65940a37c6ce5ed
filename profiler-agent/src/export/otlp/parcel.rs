//! A request as it travels: packed once, whether it is sent at once, again, or after a week on the disk.

use std::{fmt, io, str::FromStr};

use libdeflater::{CompressionLvl, Compressor};
use prost::bytes::Bytes;

use super::encode::Request;

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    None,
    /// With gzip, which every receiver takes.
    #[default]
    Gzip,
    /// With zstd, which Collectors take, and others may.
    Zstd,
}

/// Level of libdeflate: a twelfth smaller than zlib's 6 in half of its time; 6 takes a third longer for nothing.
const GZIP_LEVEL: i32 = 5;
/// Level of zstd: in half of gzip's time as small.
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::None, Self::Gzip, Self::Zstd];

    /// Its name in `OTEL_EXPORTER_OTLP_COMPRESSION` and in headers; `none` is in no header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn pack(self, bytes: &Bytes) -> io::Result<Bytes> {
        match self {
            Self::None => Ok(bytes.clone()),
            Self::Gzip => {
                let level = CompressionLvl::new(GZIP_LEVEL).unwrap_or_default();
                let mut gzip = Compressor::new(level);
                let mut packed = vec![0; gzip.gzip_compress_bound(bytes.len())];
                let length = gzip.gzip_compress(bytes, &mut packed).map_err(io::Error::other)?;
                packed.truncate(length);
                packed.shrink_to_fit();
                Ok(Bytes::from(packed))
            }
            Self::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL).map(Bytes::from),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is of no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a compression; choose gzip, zstd or none")]
pub struct UnknownCompression(String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Self, UnknownCompression> {
        Self::ALL
            .into_iter()
            .find(|compression| compression.name() == name)
            .ok_or_else(|| UnknownCompression(name.to_owned()))
    }
}

/// A packed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// `ExportProfilesServiceRequest`, compressed.
    pub body: Bytes,
    /// How.
    pub compression: Compression,
    /// Bytes before compression.
    pub length: usize,
    /// Events in it.
    pub events: u64,
    /// `Profile` messages in it, by which receivers count what they reject.
    pub profiles: u32,
}

impl Parcel {
    /// Packs a request.
    pub fn pack(request: &Request, compression: Compression) -> Self {
        let Request {
            bytes,
            events,
            profiles,
        } = request;
        // Compression in memory does not fail; if it did, the request would still go out.
        let (body, compression) = match compression.pack(bytes) {
            Ok(body) => (body, compression),
            Err(error) => {
                tracing::debug!(%error, "cannot compress a request");
                (bytes.clone(), Compression::None)
            }
        };
        Self {
            body,
            compression,
            length: bytes.len(),
            events: *events,
            profiles: *profiles,
        }
    }

    /// Events of so many rejected profiles. Receivers do not say which ones: it is their share.
    pub fn events_of(&self, rejected: u64) -> u64 {
        let all = u64::from(self.profiles.max(1));
        let share = u128::from(self.events) * u128::from(rejected.min(all));
        u64::try_from(share.div_ceil(u128::from(all))).unwrap_or(self.events)
    }
}

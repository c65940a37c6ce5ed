//! A whole profile to a receiver, request by request, each sent once.

use super::{
    answer::ExportError,
    client::{Client, ClientError, Options},
    encode,
    endpoint::Endpoint,
};
use crate::profile::Profile;

/// What has become of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Samples that the receiver took.
    pub samples: u64,
    /// Samples that it rejected, with its words for it.
    pub rejected: Option<(u64, String)>,
    /// Encoded bytes, before compression.
    pub bytes: usize,
}

/// Why a profile, or the rest of it, has not arrived.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// There is no client for this endpoint.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A request failed; those before it have arrived.
    #[error("{left} of {samples} samples were not exported: {source}")]
    Export {
        /// Samples of the profile.
        samples: u64,
        /// Those that have not arrived.
        left: u64,
        /// Why.
        source: ExportError,
    },
}

/// Encodes a profile and sends it. Call it in a tokio runtime.
///
/// # Errors
///
/// [`DeliverError`] at the first request that fails.
pub async fn deliver(profile: &Profile, endpoint: Endpoint) -> Result<Delivered, DeliverError> {
    let mut client = Client::new(endpoint, Options::default())?;
    let total = profile.sample_count();
    let mut delivered = Delivered {
        samples: 0,
        rejected: None,
        bytes: 0,
    };
    for request in encode::encode(profile, &encode::Options::default()) {
        let encode::Request { bytes, events } = request;
        delivered.bytes += bytes.len();
        let accepted = client
            .export(bytes)
            .await
            .map_err(|source| DeliverError::Export {
                samples: total,
                left: total.saturating_sub(delivered.samples),
                source,
            })?;
        let rejected = accepted.rejected.min(events);
        if rejected > 0 {
            let (count, words) = delivered.rejected.get_or_insert_default();
            *count += rejected;
            *words = accepted.message;
        } else if !accepted.message.is_empty() {
            tracing::warn!(
                message = accepted.message,
                "the receiver has something to say about the profiles"
            );
        }
        delivered.samples += events - rejected;
    }
    Ok(delivered)
}

//! Whether the receiver takes profiles: an empty request, sent as a full one would be.

use super::{Check, Section, Verdict};
use crate::export::otlp::{
    client::{self, Client},
    encode::Request,
    endpoint::Endpoint,
    parcel::{Compression, Parcel},
};

/// Sends a request without profiles.
pub fn receiver(endpoint: Endpoint, options: &client::Options, compression: Compression) -> Section {
    let name = endpoint.to_string();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| {
            runtime.block_on(async {
                let client = Client::new(endpoint, options).map_err(|error| error.to_string())?;
                let parcel = Parcel::pack(&Request::default(), compression);
                client.export(parcel).await.map_err(|error| error.to_string())
            })
        });
    let check = match result {
        Ok(_) => Check::fine(&name, "took an empty request", "it has a pipeline of profiles"),
        // The error names what to do.
        Err(error) => {
            let (found, remedy) = error.split_once("; ").unwrap_or((&error, ""));
            let (found, remedy) = match found.split_once("): ") {
                Some((found, more)) if remedy.is_empty() => (format!("{found})"), more.to_owned()),
                _ => (found.to_owned(), remedy.to_owned()),
            };
            let remedy = if remedy.is_empty() {
                "see its own log".to_owned()
            } else {
                remedy
            };
            Check::wrong(
                &name,
                &found,
                "profiles wait in the spool until it takes them, and the oldest are dropped when that is full",
                Verdict::Broken,
                &remedy,
            )
        }
    };
    Section {
        title: "receiver: where profiles are sent",
        checks: vec![check],
    }
}

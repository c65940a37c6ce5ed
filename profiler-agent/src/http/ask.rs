//! The other side: asks a running agent.

use std::{collections::BTreeMap, io, time::Duration};

use reqwest::{Url, header::HeaderMap};

use super::{Address, LOST};
use crate::{
    export::otlp::tls,
    profile::Profile,
    read::{self, Problem},
    telemetry::Loss,
};

/// How long the agent may take: it answers two at a time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent that can be asked. It has a thread's time while it is: every question waits for its answer.
#[derive(Debug)]
pub struct Asked {
    address: Address,
    token: Option<String>,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("no agent answers at {0}; start one with --serve {0}, or say where it is")]
    Nobody(Address),
    /// The way there, or back.
    #[error("asking the agent at {address}: {reason}")]
    Transport {
        /// Where.
        address: Address,
        /// What happened.
        reason: String,
    },
    /// The agent says why not.
    #[error("the agent at {address} says: {sentence}")]
    Refused {
        /// Where.
        address: Address,
        /// What it says.
        sentence: String,
        /// Whether it says that there is nothing of what was asked for.
        is_nothing: bool,
    },
    /// What it sent is no profile.
    #[error("the answer of the agent at {address} {problem}")]
    Answer {
        /// Where.
        address: Address,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A resource of this process.
    #[error("cannot prepare to ask")]
    Start(#[source] io::Error),
}

impl Asked {
    /// Prepares to ask; connects to nothing yet.
    ///
    /// # Errors
    /// [`AskError::Start`].
    pub fn new(address: Address, token: Option<String>) -> Result<Self, AskError> {
        tls::choose_cryptography();
        let mut client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            // An agent of this host is asked without the help of others.
            .no_proxy()
            .tls_backend_preconfigured(tls::trusting_nobody());
        if let Address::Unix(path) = &address {
            client = client.unix_socket(path.clone());
        }
        let client = client
            .build()
            .map_err(|error| AskError::Start(io::Error::other(error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AskError::Start)?;
        Ok(Self {
            address,
            token,
            client,
            runtime,
        })
    }

    /// The bytes of an answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Vec<u8>, AskError> {
        Ok(self.ask(path, parameters)?.1)
    }

    /// An answer: its headers and its bytes.
    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<(HeaderMap, Vec<u8>), AskError> {
        let failed = |reason: String| AskError::Transport {
            address: self.address.clone(),
            reason,
        };
        let base = match &self.address {
            Address::Tcp(address) => format!("http://{address}{path}"),
            Address::Unix(_) => format!("http://localhost{path}"),
        };
        let url = Url::parse_with_params(&base, parameters).map_err(|error| failed(error.to_string()))?;
        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let limit = read::Options::default().limit;
        self.runtime.block_on(async {
            let transport = |error: reqwest::Error| {
                if error.is_connect() {
                    return AskError::Nobody(self.address.clone());
                }
                failed(error.without_url().to_string())
            };
            let mut answer = request.send().await.map_err(transport)?;
            let status = answer.status();
            let headers = std::mem::take(answer.headers_mut());
            let mut body = Vec::new();
            while let Some(piece) = answer.chunk().await.map_err(transport)? {
                if piece.len() > limit.saturating_sub(body.len()) {
                    return Err(failed(format!("the answer is longer than {} MiB", limit >> 20)));
                }
                body.extend_from_slice(&piece);
            }
            if status.is_success() {
                return Ok((headers, body));
            }
            Err(AskError::Refused {
                address: self.address.clone(),
                sentence: crate::export::text::plain(String::from_utf8_lossy(&body).trim(), 1000),
                is_nothing: status == reqwest::StatusCode::NOT_FOUND,
            })
        })
    }

    /// A profile of what was sampled in a time, with what else is asked for.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn profile(&self, parameters: &[(&str, &str)]) -> Result<Profile, AskError> {
        let (headers, bytes) = self.ask("/profile.otlp", parameters)?;
        let mut profile =
            read::bytes(&bytes, &read::Options::default()).map_err(|problem| AskError::Answer {
                address: self.address.clone(),
                problem,
            })?;
        let lost = headers.get(LOST).and_then(|lost| lost.to_str().ok());
        profile.capture.lost = lost.map(losses).unwrap_or_default();
        Ok(profile)
    }
}

/// Reads what was lost by reason; what this version has no word for is left out.
fn losses(text: &str) -> BTreeMap<Loss, u64> {
    let losses = text.split(", ").filter_map(|loss| {
        let (name, count) = loss.split_once('=')?;
        let reason = Loss::ALL.into_iter().find(|reason| reason.name() == name)?;
        Some((reason, count.parse().ok()?))
    });
    losses.collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Server};
    use super::*;
    use crate::{history::Limits, profile::Capture, telemetry::Telemetry};

    #[test]
    fn what_was_lost_is_told_with_the_profile() {
        let options = Options {
            address: "127.0.0.1:0".parse().unwrap(),
            token: None,
            limits: Limits::default(),
            folder: None,
        };
        let server = Server::start(options, Duration::from_secs(2), &Telemetry::default().into()).unwrap();
        let mut slice = read::bytes(b"program;main 7\n", &read::Options::default()).unwrap();
        slice.capture = Capture {
            target: "whole host".into(),
            start: 1_000_000_000,
            duration: 1_000_000_000,
            frequency: 99,
            lost: BTreeMap::from([(Loss::RingFull, 3), (Loss::TornRecord, 1)]),
            ..Capture::default()
        };
        server.entrance().hand_over(slice.clone());
        let asked = Asked::new(server.address().clone(), None).unwrap();
        let profile = loop {
            match asked.profile(&[]) {
                Ok(profile) => break profile,
                // It is not taken in yet.
                Err(AskError::Refused { is_nothing: true, .. }) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(profile.sample_count(), 7);
        assert_eq!(profile.capture.lost, slice.capture.lost);
    }
}

//! TLS to the receiver, for both transports alike: rustls, with the roots of the system or a given authority, and with a certificate of
//! our own where the receiver wants one.

use std::{io, path::PathBuf};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Most bytes of a file of certificates; a bundle of all public authorities is 250 kB.
const FILE_LIMIT: u64 = 4 << 20;

/// Files for TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Authorities that the receiver's certificate may come from, PEM; without it, those of the system.
    pub authority: Option<PathBuf>,
    /// Our certificate and its key, PEM, for receivers that ask who we are.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {what} in PEM: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate and the key do not fit together.
    #[error("the certificate {certificate} and the key {key} are of no use: {reason}")]
    Identity {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system has no authorities.
    #[error(
        "the system has no certificate authorities (Debian package ca-certificates); give those of the receiver with --otlp-ca"
    )]
    NoRoots,
}

/// Chooses the implementation of cryptography for the whole process; there is but one.
pub(crate) fn choose_cryptography() {
    // It fails when it was chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// For plain http: the transport wants a configuration, and asks the system for authorities without one.
pub(crate) fn trusting_nobody() -> ClientConfig {
    ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// What was read from the files.
#[derive(Debug)]
pub(super) struct Tls {
    files: Files,
    authority: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Reads the files, and tries what they hold, so that a mistake is told at the start and not as an outage.
    pub(super) fn load(files: &Files) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| {
            crate::procfs::read(path, FILE_LIMIT).map_err(|source| TlsError::Read {
                path: path.clone(),
                source,
            })
        };
        let tls = Self {
            files: files.clone(),
            authority: files.authority.as_ref().map(read).transpose()?,
            identity: match &files.identity {
                Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
                None => None,
            },
        };
        tls.for_http()?;
        Ok(tls)
    }

    /// For gRPC.
    pub(super) fn for_grpc(&self) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new();
        config = match &self.authority {
            Some(authority) => config.ca_certificate(Certificate::from_pem(authority)),
            None => config.with_native_roots(),
        };
        match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        }
    }

    /// For HTTP.
    pub(super) fn for_http(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        match (&self.authority, &self.files.authority) {
            (Some(authority), Some(path)) => {
                let wrong = |reason: String| TlsError::Content {
                    path: path.clone(),
                    what: "certificate",
                    reason,
                };
                for certificate in CertificateDer::pem_slice_iter(authority) {
                    let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                    roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(wrong("there is none".into()));
                }
            }
            _ => {
                let native = rustls_native_certs::load_native_certs();
                for error in native.errors {
                    tracing::debug!(%error, "an authority of the system cannot be read");
                }
                roots.add_parsable_certificates(native.certs);
                if roots.is_empty() {
                    return Err(TlsError::NoRoots);
                }
            }
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let (Some((certificate, key)), Some((certificate_path, key_path))) =
            (&self.identity, &self.files.identity)
        else {
            return Ok(config.with_no_client_auth());
        };
        let wrong = |path: &PathBuf, what| {
            let path = path.clone();
            move |error: rustls::pki_types::pem::Error| TlsError::Content {
                path,
                what,
                reason: error.to_string(),
            }
        };
        let chain = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(wrong(certificate_path, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(wrong(key_path, "private key"))?;
        config
            .with_client_auth_cert(chain, key)
            .map_err(|error| TlsError::Identity {
                certificate: certificate_path.clone(),
                key: key_path.clone(),
                reason: error.to_string(),
            })
    }
}

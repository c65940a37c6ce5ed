//! TLS against a real Collector: whom the client trusts, and who it says that it is.

use std::path::PathBuf;

use profiler_agent::export::otlp::{
    client::{Accepted, Client, ClientError, ExportError, Options},
    encode::{self, encode},
    endpoint::{Endpoint, Protocol},
    parcel::{Compression, Parcel},
    tls,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::support::{
    collector::{Site, TO_FILE},
    profiles,
};

/// An authority that issues certificates into a folder.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
}

impl Authority {
    fn new(site: &Site, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let path = site.path(&format!("{name}.pem"));
        std::fs::write(&path, certificate.pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            certificate: path,
        }
    }

    /// A certificate of a name, and its key; one that has expired if need be.
    fn issue(&self, site: &Site, name: &str, file: &str, has_expired: bool) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if has_expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = (
            site.path(&format!("{file}.crt")),
            site.path(&format!("{file}.key")),
        );
        std::fs::write(&paths.0, certificate.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }
}

async fn send(site: &Site, protocol: Protocol, files: tls::Files) -> Result<Accepted, ExportError> {
    let url = site.url(protocol).replace("http://", "https://");
    let options = Options {
        tls: files,
        ..Options::default()
    };
    let client = Client::new(Endpoint::parse(&url, Some(protocol)).unwrap(), &options).unwrap();
    let request = encode(&profiles::server(), &encode::Options::default()).remove(0);
    client.export(Parcel::pack(&request, Compression::Gzip)).await
}

fn trusting(authority: &Authority) -> tls::Files {
    tls::Files {
        authority: Some(authority.certificate.clone()),
        identity: None,
    }
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Grpc, Protocol::Http];

#[tokio::test]
async fn only_the_right_certificate_is_trusted() {
    let Some(mut site) = Site::find("tls::only_the_right_certificate_is_trusted") else {
        return;
    };
    let (ours, others) = (Authority::new(&site, "ours"), Authority::new(&site, "others"));
    for (name, has_expired, authority, expected) in [
        ("127.0.0.1", false, Some(&ours), None),
        (
            "collector.example",
            false,
            Some(&ours),
            Some("not valid for name"),
        ),
        ("127.0.0.1", true, Some(&ours), Some("expired")),
        ("127.0.0.1", false, Some(&others), Some("UnknownIssuer")),
        // The authorities of the system do not know ours.
        ("127.0.0.1", false, None, Some("UnknownIssuer")),
    ] {
        let (certificate, key) = ours.issue(&site, name, "server", has_expired);
        let server = format!(
            ", tls: {{cert_file: {}, key_file: {}}}",
            certificate.display(),
            key.display()
        );
        let collector = site.start(TO_FILE, "", &server);
        for protocol in PROTOCOLS {
            let files = authority.map(trusting).unwrap_or_default();
            let result = send(&site, protocol, files).await;
            match expected {
                None => assert_eq!(result, Ok(Accepted::default()), "{protocol}"),
                Some(words) => {
                    let error = result.unwrap_err();
                    assert!(
                        matches!(error, ExportError::Untrusted { .. }),
                        "{protocol}: {error:?}"
                    );
                    // Certificates are renewed: what waits for that is not lost.
                    assert!(error.is_retryable());
                    let text = error.to_string();
                    assert!(text.contains(words) && text.contains("--otlp-ca"), "{text}");
                }
            }
        }
        // Spoken to without TLS, it is not there.
        let endpoint = collector.endpoint(Protocol::Grpc);
        let client = Client::new(endpoint, &Options::default()).unwrap();
        let request = encode(&profiles::server(), &encode::Options::default()).remove(0);
        let error = client
            .export(Parcel::pack(&request, Compression::Gzip))
            .await
            .unwrap_err();
        assert!(matches!(error, ExportError::Unreachable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_asks_who_we_are_is_told() {
    let Some(mut site) = Site::find("tls::a_receiver_that_asks_who_we_are_is_told") else {
        return;
    };
    let ours = Authority::new(&site, "ours");
    let (certificate, key) = ours.issue(&site, "127.0.0.1", "server", false);
    let server = format!(
        ", tls: {{cert_file: {}, key_file: {}, client_ca_file: {}}}",
        certificate.display(),
        key.display(),
        ours.certificate.display()
    );
    let _collector = site.start(TO_FILE, "", &server);
    let identity = Some(ours.issue(&site, "agent", "agent", false));
    for protocol in PROTOCOLS {
        let error = send(&site, protocol, trusting(&ours)).await.unwrap_err();
        assert!(error.is_retryable(), "{protocol}: {error:?}");
        let files = tls::Files {
            identity: identity.clone(),
            ..trusting(&ours)
        };
        assert_eq!(
            send(&site, protocol, files).await,
            Ok(Accepted::default()),
            "{protocol}"
        );
    }
}

#[tokio::test]
async fn what_is_no_certificate_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pem");
    let client = |files: tls::Files| {
        let endpoint = Endpoint::parse("https://localhost:4317", None).unwrap();
        let options = Options {
            tls: files,
            ..Options::default()
        };
        let error = Client::new(endpoint, &options).unwrap_err();
        assert!(matches!(error, ClientError::Tls(_)));
        error.to_string()
    };
    let authority = tls::Files {
        authority: Some(path.clone()),
        identity: None,
    };
    assert!(client(authority.clone()).contains("cannot read"));
    std::fs::write(&path, "hello").unwrap();
    assert!(client(authority).contains("holds no certificate"));
    let identity = tls::Files {
        authority: None,
        identity: Some((path.clone(), path)),
    };
    assert!(client(identity).contains("no "));
}

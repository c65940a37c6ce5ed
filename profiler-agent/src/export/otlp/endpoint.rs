//! Where profiles go, and by which protocol.

use std::{fmt, str::FromStr};

use reqwest::Url;

/// Path of the profiles signal over HTTP, below the endpoint.
pub const HTTP_PATH: &str = "/v1development/profiles";

/// Path of the metrics signal.
pub(super) const METRICS_PATH: &str = "/v1/metrics";

/// How OTLP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// gRPC, usually on port 4317.
    Grpc,
    /// Protocol buffers in HTTP POST requests, usually on port 4318.
    Http,
}

impl Protocol {
    /// Its name in `OTEL_EXPORTER_OTLP_PROTOCOL` and `--otlp-protocol`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http/protobuf",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = EndpointError;

    fn from_str(name: &str) -> Result<Self, EndpointError> {
        [Self::Grpc, Self::Http]
            .into_iter()
            .find(|protocol| protocol.name() == name)
            .ok_or_else(|| EndpointError::UnknownProtocol(name.to_owned()))
    }
}

/// A checked endpoint: `http://collector:4317`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: Url,
    protocol: Protocol,
    exact: bool,
}

/// Why an endpoint is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It cannot be read.
    #[error("{given:?} is not a URL ({reason}); an endpoint looks like http://localhost:4317")]
    NotAUrl {
        /// As given.
        given: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Its scheme is not one of OTLP; often there is none at all.
    #[error("{0:?} does not begin with http:// or https://; an endpoint looks like http://localhost:4317")]
    UnknownScheme(String),
    /// User and password would be seen in logs, and gRPC has no place for them. They are not repeated here.
    #[error("the endpoint holds a user or a password; leave them out")]
    Credentials,
    /// gRPC has a path of its own.
    #[error(
        "{0:?} has a path, which gRPC cannot have; leave it out, or choose --otlp-protocol http/protobuf"
    )]
    PathWithGrpc(String),
    /// The protocol is not one of OTLP's.
    #[error("{0:?} is not a protocol; choose grpc or http/protobuf")]
    UnknownProtocol(String),
}

impl Endpoint {
    /// Checks an endpoint. Without a protocol, port 4318 means HTTP and any other gRPC.
    ///
    /// # Errors
    /// [`EndpointError`], which says what an endpoint looks like.
    pub fn parse(given: &str, protocol: Option<Protocol>) -> Result<Self, EndpointError> {
        let url: Url = given.trim().parse().map_err(|reason| EndpointError::NotAUrl {
            given: given.to_owned(),
            reason: format!("{reason}"),
        })?;
        match url.scheme() {
            "http" | "https" => {}
            _ => return Err(EndpointError::UnknownScheme(given.to_owned())),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EndpointError::Credentials);
        }
        let protocol = protocol.unwrap_or(match url.port() {
            Some(4318) => Protocol::Http,
            _ => Protocol::Grpc,
        });
        if protocol == Protocol::Grpc && !matches!(url.path(), "" | "/") {
            return Err(EndpointError::PathWithGrpc(given.to_owned()));
        }
        Ok(Self {
            url,
            protocol,
            exact: false,
        })
    }

    /// Uses the path as it is given, without that of the signal: what `OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT` means.
    #[must_use]
    pub fn exactly(self) -> Self {
        Self { exact: true, ..self }
    }

    /// The same, spoken to by another protocol. gRPC has no path.
    #[must_use]
    pub fn spoken_to_by(mut self, protocol: Protocol) -> Self {
        if protocol == Protocol::Grpc {
            self.url.set_path("");
        }
        Self { protocol, ..self }
    }

    /// Whether it is spoken to through TLS.
    pub fn is_secure(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// How it is spoken to.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Where profiles go: with the path of the signal for HTTP.
    pub fn url(&self) -> Url {
        self.url_of(HTTP_PATH)
    }

    /// Where requests of a signal go that has this path over HTTP.
    pub(super) fn url_of(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        if self.protocol == Protocol::Http && !self.exact {
            let path = format!("{}{path}", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        url
    }

    /// The same receiver for another signal: a path that is meant for this one is none of its.
    #[must_use]
    pub fn of_any_signal(mut self) -> Self {
        if self.exact {
            self.url.set_path("");
            self.exact = false;
        }
        self
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({})",
            self.url().as_str().trim_end_matches('/'),
            self.protocol
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_by_port() {
        let protocol = |url| Endpoint::parse(url, None).unwrap().protocol();
        assert_eq!(protocol("http://localhost:4317"), Protocol::Grpc);
        assert_eq!(protocol("http://localhost:4318"), Protocol::Http);
        assert_eq!(protocol("http://collector:9999"), Protocol::Grpc);
        let forced = Endpoint::parse("http://x:4318", Some(Protocol::Grpc)).unwrap();
        assert_eq!(forced.protocol(), Protocol::Grpc);
        assert_eq!("http/protobuf".parse(), Ok(Protocol::Http));
        assert!(matches!(
            "http/json".parse::<Protocol>(),
            Err(EndpointError::UnknownProtocol(_))
        ));
    }

    #[test]
    fn path_of_the_signal() {
        for (given, url) in [
            ("http://x:4318", "http://x:4318/v1development/profiles"),
            ("http://x:4318/", "http://x:4318/v1development/profiles"),
            (
                "http://x:4318/api/a/",
                "http://x:4318/api/a/v1development/profiles",
            ),
        ] {
            assert_eq!(Endpoint::parse(given, None).unwrap().url().as_str(), url);
        }
    }

    #[test]
    fn an_exact_path_stays() {
        let endpoint = Endpoint::parse("https://x:4318/in", None).unwrap();
        assert!(endpoint.is_secure());
        assert_eq!(endpoint.exactly().url().as_str(), "https://x:4318/in");
    }

    #[test]
    fn bad_endpoints_say_what_a_good_one_looks_like() {
        use EndpointError as E;
        let error = |url: &str| Endpoint::parse(url, None).unwrap_err();
        assert!(matches!(error(""), E::NotAUrl { .. }));
        assert!(matches!(error("collector"), E::NotAUrl { .. }));
        assert!(matches!(error("http://"), E::NotAUrl { .. }));
        assert!(matches!(error("http://x:99999"), E::NotAUrl { .. }));
        assert!(matches!(error("localhost:4317"), E::UnknownScheme(_)));
        assert!(matches!(error("ftp://x"), E::UnknownScheme(_)));
        assert!(matches!(error("http://x:4317/y"), E::PathWithGrpc(_)));
        let credentials = error("http://me:secret@x:4317");
        assert_eq!(credentials, E::Credentials);
        assert!(!credentials.to_string().contains("secret"));
        assert!(
            error("localhost:4317")
                .to_string()
                .contains("http://localhost:4317")
        );
    }
}

//! Attributes of resources: what a process says that it is by the variables of OpenTelemetry, and what the host is.
//! <https://opentelemetry.io/docs/specs/otel/resource/sdk/>

use percent_encoding::percent_decode_str;

use crate::procfs;

/// `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// The name of the service.
    pub service_name: Option<String>,
    /// Everything else, in the order given.
    pub attributes: Vec<(String, String)>,
}

/// Most attributes that are taken of one variable.
const MAX_ATTRIBUTES: usize = 128;

impl Resource {
    /// Reads the two variables. Nothing is taken of an `OTEL_RESOURCE_ATTRIBUTES` that cannot be read as a whole, as the specification has it.
    pub fn read(service_name: Option<&str>, attributes: Option<&str>) -> Self {
        let mut resource = Self::default();
        let pairs = attributes.and_then(pairs).unwrap_or_default();
        for (key, value) in pairs.into_iter().take(MAX_ATTRIBUTES) {
            if key == "service.name" {
                resource.service_name = Some(value).filter(|name| !name.is_empty());
            } else if !key.is_empty() && !resource.attributes.iter().any(|(other, _)| *other == key) {
                resource.attributes.push((key, value));
            }
        }
        if let Some(name) = service_name.filter(|name| !name.is_empty()) {
            resource.service_name = Some(name.to_owned());
        }
        resource
    }
}

/// Reads `k=v,k=v` with percent-encoded values; `None` when a part of it is no pair.
pub(crate) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=')?;
            let decode = |text: &str| {
                let text = percent_decode_str(text.trim()).decode_utf8().ok()?;
                Some(text.into_owned())
            };
            Some((decode(key)?, decode(value)?))
        })
        .collect()
}

/// What of the agent's own attributes holds for everything on its host; the rest is about the agent.
const OF_THE_HOST: [&str; 6] = [
    "host.",
    "os.",
    "cloud.",
    "deployment.",
    "k8s.node.",
    "k8s.cluster.",
];

/// The attributes of this host but for its name, and those that the agent was given for it, which come first.
pub fn of_this_host(agent: &Resource) -> Vec<(String, String)> {
    let is_of_host = |key: &str| OF_THE_HOST.iter().any(|prefix| key.starts_with(prefix));
    let given = agent.attributes.iter().filter(|(key, _)| is_of_host(key));
    let mut attributes: Vec<(String, String)> = given.cloned().collect();
    let system = rustix::system::uname();
    let id = ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .iter()
        .find_map(|path| procfs::read(path, 64).ok())
        .map(|id| String::from_utf8_lossy(&id).trim().to_owned())
        .unwrap_or_default();
    for (key, value) in [
        ("host.id", id),
        (
            "host.arch",
            architecture(&system.machine().to_string_lossy()).to_owned(),
        ),
        ("os.type", "linux".to_owned()),
        ("os.version", system.release().to_string_lossy().into_owned()),
    ] {
        if !value.is_empty() && !attributes.iter().any(|(other, _)| other == key) {
            attributes.push((key.to_owned(), value));
        }
    }
    attributes
}

/// The attributes of the agent itself, with those of its host.
pub fn of_the_agent(agent: &Resource) -> Vec<(String, String)> {
    let system = rustix::system::uname();
    // By RFC 9562: random, but for the version and the variant.
    let id = (fastrand::u128(..) & !(0xf << 76 | 0x3 << 62)) | 4 << 76 | 2 << 62;
    let id = format!("{id:032x}");
    let id: Vec<&str> = [0..8, 8..12, 12..16, 16..20, 20..32]
        .into_iter()
        .filter_map(|part| id.get(part))
        .collect();
    let mut attributes = vec![
        (
            "service.name",
            agent
                .service_name
                .as_deref()
                .unwrap_or("profiler-agent")
                .to_owned(),
        ),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", id.join("-")),
        ("process.pid", std::process::id().to_string()),
        ("host.name", system.nodename().to_string_lossy().into_owned()),
    ];
    attributes.retain(|(key, _)| !agent.attributes.iter().any(|(other, _)| other == key));
    let own = attributes.into_iter().map(|(key, value)| (key.to_owned(), value));
    let of_host = of_this_host(agent);
    let given = agent.attributes.iter().filter(|given| !of_host.contains(given));
    own.chain(given.cloned()).chain(of_host.clone()).collect()
}

/// An architecture as the semantic conventions call it.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_service_beats_the_attributes() {
        let attributes = "service.name=attribute,deployment.environment.name=a%2Cb";
        let both = Resource::read(Some("name"), Some(attributes));
        assert_eq!(both.service_name.as_deref(), Some("name"));
        assert_eq!(
            both.attributes,
            [("deployment.environment.name".to_owned(), "a,b".to_owned())]
        );
        assert_eq!(
            Resource::read(None, Some(attributes)).service_name.as_deref(),
            Some("attribute")
        );
        // One that cannot be read costs all.
        assert_eq!(Resource::read(None, Some("a=b,c")), Resource::default());
        assert_eq!(Resource::read(None, Some("a=%ff")), Resource::default());
    }

    #[test]
    fn the_host_is_what_it_is_called() {
        let agent = Resource::read(
            None,
            Some("service.version=1,deployment.environment.name=prod,k8s.pod.name=agent,os.version=mine"),
        );
        let attributes = of_this_host(&agent);
        let value = |key: &str| {
            let mut values = attributes.iter().filter(|(other, _)| other == key);
            let value = values.next().map(|(_, value)| value.as_str());
            assert!(values.next().is_none(), "{key} is there twice");
            value
        };
        assert_eq!(value("deployment.environment.name"), Some("prod"));
        assert_eq!(
            (value("os.type"), value("os.version")),
            (Some("linux"), Some("mine"))
        );
        assert!(value("host.arch").is_some());
        assert_eq!((value("k8s.pod.name"), value("service.version")), (None, None));
    }
}

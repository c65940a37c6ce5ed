//! The `OTEL_*` variables that say where profiles go and what describes this host:
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.
//!
//! A variable of the signal (`OTEL_EXPORTER_OTLP_PROFILES_…`) beats the general one (`OTEL_EXPORTER_OTLP_…`), and an empty one is none. A value
//! that cannot be read is passed over with a warning, as the specification has it; a header's value is never part of one.

use crate::resource::{Resource, pairs};

/// A setting, by the name of its flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag without its dashes.
    pub flag: &'static str,
    /// As the flag would have it; more than one for a flag that is repeated.
    pub values: Vec<String>,
    /// The variable that it comes from.
    pub variable: String,
}

/// What the variables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Settings for flags.
    pub settings: Vec<Setting>,
    /// Whether the endpoint is to be used as it is, without the path of the signal.
    pub exact_endpoint: bool,
    /// What holds for metrics alone, by the flags that say it for profiles.
    pub metrics: Vec<Setting>,
    /// Whether their endpoint is to be used as it is.
    pub exact_metrics_endpoint: bool,
    /// `OTEL_SDK_DISABLED`: nothing is to be sent.
    pub is_disabled: bool,
    /// Attributes of this host and this agent.
    pub resource: Resource,
    /// What was passed over, for people.
    pub warnings: Vec<String>,
}

impl Environment {
    /// Reads the variables through `get`.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let mut this = Self {
            resource: Resource::read(
                get("OTEL_SERVICE_NAME").as_deref(),
                get("OTEL_RESOURCE_ATTRIBUTES").as_deref(),
            ),
            is_disabled: get("OTEL_SDK_DISABLED")
                .is_some_and(|value| value.trim().eq_ignore_ascii_case("true")),
            ..Self::default()
        };
        let find = |name: &str| {
            let profiles = format!("OTEL_EXPORTER_OTLP_PROFILES_{name}");
            let general = format!("OTEL_EXPORTER_OTLP_{name}");
            let of_signal = get(&profiles).map(|value| (profiles, value, true));
            of_signal.or_else(|| get(&general).map(|value| (general, value, false)))
        };
        let (settings, exact) = this.signal(find);
        this.settings = settings;
        this.exact_endpoint = exact;
        let find = |name: &str| {
            let metrics = format!("OTEL_EXPORTER_OTLP_METRICS_{name}");
            let general = format!("OTEL_EXPORTER_OTLP_{name}");
            let of_signal = get(&metrics).map(|value| (metrics, value, true));
            // What the variable of profiles says is not for metrics.
            let is_hidden = get(&format!("OTEL_EXPORTER_OTLP_PROFILES_{name}")).is_some();
            of_signal.or_else(|| {
                get(&general)
                    .filter(|_| is_hidden)
                    .map(|value| (general, value, false))
            })
        };
        (this.metrics, this.exact_metrics_endpoint) = this.signal(find);
        this.metrics_interval(get);
        this
    }

    /// How often metrics are exported, and whether at all.
    fn metrics_interval(&mut self, get: impl Fn(&str) -> Option<String>) {
        let (variable, exporter) = ("OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRICS_EXPORTER");
        let value = match (get(exporter).as_deref().map(str::trim), get(variable)) {
            (Some("none"), _) => Some((exporter, "off".to_owned())),
            (_, Some(value)) => match value.trim().parse::<u32>() {
                Ok(milliseconds) if milliseconds > 0 => Some((variable, format!("{milliseconds}ms"))),
                _ => {
                    self.warn(format!(
                        "{variable} is {value:?}, which is no number of milliseconds"
                    ));
                    None
                }
            },
            _ => None,
        };
        if let Some((variable, value)) = value {
            self.settings.push(Setting {
                flag: "metrics-interval",
                values: vec![value],
                variable: variable.to_owned(),
            });
        }
    }

    /// What the variables of a signal say, which `find` finds by the ends of their names, and whether its endpoint is its own.
    fn signal(&mut self, find: impl Fn(&str) -> Option<(String, String, bool)>) -> (Vec<Setting>, bool) {
        let mut settings = Vec::new();
        let mut exact = false;
        let mut set = |flag, variable, values| {
            settings.push(Setting {
                flag,
                values,
                variable,
            });
        };
        if let Some((variable, endpoint, of_signal)) = find("ENDPOINT") {
            let insecure =
                find("INSECURE").is_some_and(|(_, value, _)| value.trim().eq_ignore_ascii_case("true"));
            // gRPC takes endpoints without a scheme; whether they are spoken to through TLS is a variable of its own.
            let endpoint = match (endpoint.contains("://"), insecure) {
                (true, _) => endpoint,
                (false, true) => format!("http://{endpoint}"),
                (false, false) => format!("https://{endpoint}"),
            };
            exact = of_signal;
            set("otlp-endpoint", variable, vec![endpoint]);
        }
        for (name, flag, known) in [
            ("PROTOCOL", "otlp-protocol", &["grpc", "http/protobuf"][..]),
            ("COMPRESSION", "otlp-compression", &["none", "gzip", "zstd"]),
        ] {
            if let Some((variable, value, _)) = find(name) {
                if known.contains(&value.trim()) {
                    set(flag, variable, vec![value.trim().to_owned()]);
                } else {
                    self.warn(format!(
                        "{variable} is {value:?}, which is none of {}",
                        known.join(", ")
                    ));
                }
            }
        }
        if let Some((variable, value, _)) = find("TIMEOUT") {
            match value.trim().parse::<u32>() {
                Ok(milliseconds) if milliseconds > 0 => {
                    set("otlp-timeout", variable, vec![format!("{milliseconds}ms")]);
                }
                _ => self.warn(format!(
                    "{variable} is {value:?}, which is no number of milliseconds"
                )),
            }
        }
        if let Some((variable, value, _)) = find("HEADERS") {
            match pairs(&value) {
                Some(pairs) => {
                    let headers = pairs.iter().map(|(name, value)| format!("{name}={value}"));
                    set("otlp-header", variable, headers.collect());
                }
                None => self.warn(format!("{variable} is not of the form NAME=VALUE,NAME=VALUE")),
            }
        }
        for (name, flag) in [
            ("CERTIFICATE", "otlp-ca"),
            ("CLIENT_CERTIFICATE", "otlp-cert"),
            ("CLIENT_KEY", "otlp-key"),
        ] {
            if let Some((variable, value, _)) = find(name) {
                set(flag, variable, vec![value]);
            }
        }
        (settings, exact)
    }

    fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn value(environment: &Environment, flag: &str) -> Vec<String> {
        let setting = environment.settings.iter().find(|setting| setting.flag == flag);
        setting.map(|setting| setting.values.clone()).unwrap_or_default()
    }

    #[test]
    fn the_variable_of_the_signal_beats_the_general_one() {
        let both = environment(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4317"),
            ("OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT", "http://signal:4318/in"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_PROFILES_COMPRESSION", ""),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ]);
        assert_eq!(value(&both, "otlp-endpoint"), ["http://signal:4318/in"]);
        assert!(both.exact_endpoint);
        assert_eq!(value(&both, "otlp-timeout"), ["2500ms"]);
        assert_eq!(value(&both, "otlp-compression"), ["none"]);
        assert_eq!(both.settings[0].variable, "OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT");
        let general = environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4317")]);
        assert!(!general.exact_endpoint);
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_secure_unless_said_otherwise() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317");
        assert_eq!(
            value(&environment(&[endpoint]), "otlp-endpoint"),
            ["https://collector:4317"]
        );
        let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "True");
        assert_eq!(
            value(&environment(&[endpoint, insecure]), "otlp-endpoint"),
            ["http://collector:4317"]
        );
        // A scheme says it already.
        let secure = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317");
        assert_eq!(
            value(&environment(&[secure, insecure]), "otlp-endpoint"),
            ["https://collector:4317"]
        );
    }

    #[test]
    fn headers_are_decoded_and_never_told() {
        let read = environment(&[(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20a%3Db, x-tenant=7",
        )]);
        assert_eq!(
            value(&read, "otlp-header"),
            ["authorization=Bearer a=b", "x-tenant=7"]
        );
        let wrong = environment(&[("OTEL_EXPORTER_OTLP_HEADERS", "secret")]);
        assert!(wrong.settings.is_empty());
        assert_eq!(wrong.warnings.len(), 1);
        assert!(!wrong.warnings[0].contains("secret"), "{:?}", wrong.warnings);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let wrong = environment(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_SDK_DISABLED", "yes"),
        ]);
        assert_eq!(wrong.settings, []);
        assert_eq!(wrong.warnings.len(), 3);
        assert!(!wrong.is_disabled);
        assert!(environment(&[("OTEL_SDK_DISABLED", "TRUE")]).is_disabled);
    }
}

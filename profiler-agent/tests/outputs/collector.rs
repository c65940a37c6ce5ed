//! A real OpenTelemetry Collector, and what it writes.

use std::time::Duration;

use opentelemetry_proto::tonic::profiles::v1development::ProfilesData;
use profiler_agent::export::otlp::{
    client::{Accepted, Client, ExportError, Options},
    encode::{self, encode},
    endpoint::Protocol,
    parcel::{Compression, Parcel},
};
use prost::Message;

use crate::support::{
    collector::{AS_REWRITTEN, Collector, attribute},
    conformance::assert_conforms,
    profiles,
};

#[tokio::test]
async fn every_sample_arrives_once() {
    let profile = profiles::server();
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let pipeline = "profiles: {receivers: [otlp], exporters: [file/proto]}";
        let Some(collector) = Collector::start("collector::every_sample_arrives_once", pipeline) else {
            return;
        };
        let client = Client::new(collector.endpoint(protocol), &Options::default()).unwrap();
        // Small requests, so that there are several.
        let requests = encode(
            &profile,
            &encode::Options {
                limit: 8_000,
                ..encode::Options::default()
            },
        );
        assert!(requests.len() > 2);
        for (request, compression) in requests.iter().zip(Compression::ALL.into_iter().cycle()) {
            assert_eq!(
                client.export(Parcel::pack(request, compression)).await,
                Ok(Accepted::default())
            );
        }
        let mut events = 0;
        let mut services = std::collections::BTreeSet::new();
        let written = collector.finish();
        assert_eq!(written.len(), requests.len());
        for bytes in written {
            assert_conforms(&bytes, AS_REWRITTEN);
            let data = ProfilesData::decode(&*bytes).unwrap();
            let strings = &data.dictionary.as_ref().unwrap().string_table;
            for resource in &data.resource_profiles {
                let attributes = &resource.resource.as_ref().unwrap().attributes;
                services.insert(attribute(strings, attributes, "service.name").unwrap());
                let profiles = resource.scope_profiles.iter().flat_map(|scope| &scope.profiles);
                let samples = profiles.flat_map(|profile| &profile.samples);
                events += samples
                    .map(|sample| sample.timestamps_unix_nano.len() as u64)
                    .sum::<u64>();
            }
        }
        assert_eq!(events, profile.sample_count(), "{protocol}");
        let names: Vec<_> = services.iter().map(String::as_str).collect();
        assert_eq!(names, ["unknown_service:shop-server", "unknown_service:worker"]);
    }
}

#[tokio::test]
async fn without_a_pipeline_it_says_what_is_missing() {
    let test = "collector::without_a_pipeline_it_says_what_is_missing";
    let Some(collector) = Collector::start(test, "logs: {receivers: [otlp], exporters: [nop]}") else {
        return;
    };
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let options = Options {
            timeout: Duration::from_secs(5),
            ..Options::default()
        };
        let client = Client::new(collector.endpoint(protocol), &options).unwrap();
        let request = encode(&profiles::server(), &encode::Options::default()).remove(0);
        let parcel = Parcel::pack(&request, Compression::Gzip);
        let error = client.export(parcel).await.unwrap_err();
        assert!(matches!(error, ExportError::NoProfiles { .. }), "{error:?}");
    }
}

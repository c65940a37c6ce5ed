//! The checker itself: a sound input has no violation, and each rule finds what breaks it.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    profiles::v1development::{Link, Profile, ProfilesData, ProfilesDictionary, Sample},
};
use profiler_agent::export::otlp::encode::{Options, encode};
use prost::Message;

use crate::support::{
    conformance::{Rule, check},
    profiles,
};

/// What our encoder makes of a profile in which every mapping has a build ID.
fn sound() -> ProfilesData {
    let requests = encode(&profiles::server(), &Options::default());
    assert_eq!(requests.len(), 1);
    ProfilesData::decode(&*requests[0].bytes).unwrap()
}

fn dictionary(data: &mut ProfilesData) -> &mut ProfilesDictionary {
    data.dictionary.as_mut().unwrap()
}

fn profile(data: &mut ProfilesData) -> &mut Profile {
    &mut data.resource_profiles[0].scope_profiles[0].profiles[0]
}

fn sample(data: &mut ProfilesData) -> &mut Sample {
    &mut profile(data).samples[0]
}

fn attributes(data: &mut ProfilesData) -> &mut Vec<KeyValue> {
    &mut data.resource_profiles[0].resource.as_mut().unwrap().attributes
}

/// Breaks one rule; may break others on the way.
fn broken(rule: Rule) -> Vec<u8> {
    let mut whole = sound();
    let data = &mut whole;
    match rule {
        Rule::Decodes => return vec![0xff; 7],
        Rule::Canonical => {
            let mut bytes = whole.encode_to_vec();
            // Field 99, a varint.
            bytes.extend([0x98, 0x06, 0x01]);
            return bytes;
        }
        Rule::Empty => profile(data).samples.clear(),
        Rule::NilResourceOrScope => data.resource_profiles[0].resource = None,
        Rule::Dictionary => data.dictionary = None,
        Rule::ZeroRow => {
            dictionary(data).link_table[0] = Link {
                trace_id: vec![0; 16],
                span_id: vec![0; 8],
            }
        }
        Rule::Index => sample(data).stack_index = 10_000,
        Rule::DuplicateRow => {
            let row = dictionary(data).stack_table[1].clone();
            dictionary(data).stack_table.push(row);
        }
        Rule::Orphan => dictionary(data).string_table.push("no one needs me".to_owned()),
        Rule::MappingRange => {
            let mapping = &mut dictionary(data).mapping_table[1];
            mapping.memory_limit = mapping.memory_start;
        }
        Rule::BuildId => dictionary(data).mapping_table[1].attribute_indices.clear(),
        Rule::AddressOutsideMapping => {
            let locations = &mut dictionary(data).location_table;
            locations
                .iter_mut()
                .find(|row| row.mapping_index != 0)
                .unwrap()
                .address = u64::MAX;
        }
        Rule::FrameType => dictionary(data).location_table[1].attribute_indices.clear(),
        Rule::NegativeLine => dictionary(data).location_table[1].lines[0].line = -1,
        Rule::NamelessFunction => dictionary(data).function_table[1] = Default::default(),
        Rule::LinkLength => {
            dictionary(data).link_table.push(Link {
                trace_id: vec![1; 15],
                span_id: vec![1; 8],
            });
            sample(data).link_index = 1;
        }
        Rule::DuplicateKey => {
            let first = sample(data).attribute_indices[0];
            sample(data).attribute_indices.push(first);
        }
        Rule::AttributeKey => dictionary(data).attribute_table[1].value = None,
        Rule::InlineAttributes => {
            attributes(data)[0].value = Some(AnyValue {
                value: Some(Value::StringValueStrindex(1)),
            });
        }
        Rule::SchemaUrl => data.resource_profiles[0].schema_url.clear(),
        Rule::SampleType => profile(data).sample_type = None,
        Rule::PeriodType => profile(data).period_type = None,
        Rule::Duration => profile(data).duration_nano = 0,
        Rule::ProfileId => profile(data).profile_id = vec![0; 16],
        Rule::OriginalPayload => profile(data).original_payload = vec![1],
        Rule::TimestampOutside => {
            let end = profile(data).time_unix_nano + profile(data).duration_nano;
            sample(data).timestamps_unix_nano[0] = end;
        }
        Rule::SampleShape => sample(data).values = vec![1, 1],
        Rule::MixedShapes => {
            sample(data).timestamps_unix_nano.clear();
            sample(data).values = vec![1];
        }
        Rule::NonPositiveValue => sample(data).values = vec![-1; sample(data).timestamps_unix_nano.len()],
        Rule::DuplicateSample => {
            let copy = sample(data).clone();
            profile(data).samples.push(copy);
        }
    }
    whole.encode_to_vec()
}

#[test]
fn sound_input_has_no_violation() {
    assert_eq!(check(&sound().encode_to_vec()), []);
}

#[test]
fn each_rule_finds_what_breaks_it() {
    for rule in Rule::ALL {
        let violations = check(&broken(rule));
        assert!(
            violations.iter().any(|v| v.rule == rule),
            "{rule:?} not in {violations:#?}"
        );
    }
}

#[test]
fn missing_tables_are_found() {
    let clear: [fn(&mut ProfilesDictionary); 7] = [
        |d| d.mapping_table.clear(),
        |d| d.location_table.clear(),
        |d| d.function_table.clear(),
        |d| d.link_table.clear(),
        |d| d.string_table.clear(),
        |d| d.attribute_table.clear(),
        |d| d.stack_table.clear(),
    ];
    for clear in clear {
        let mut data = sound();
        clear(dictionary(&mut data));
        let violations = check(&data.encode_to_vec());
        assert!(
            violations.iter().any(|v| v.rule == Rule::ZeroRow),
            "{violations:#?}"
        );
    }
}

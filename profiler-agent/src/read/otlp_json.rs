//! OTLP Profiles as JSON, one request a line, as the Collector's file exporter writes them.
//!
//! The words are turned into the numbers of the binary form, which [`super::otlp`] then reads.

use serde_json::Value;

use super::{Problem, builder::Builder, otlp};
use crate::profile::Capture;

/// What a field holds.
#[derive(Clone, Copy)]
enum Type {
    Text,
    Number,
    Fixed,
    Flag,
    Message(&'static [Field]),
}

/// A field: its name in JSON, its number, and what it holds.
type Field = (&'static str, u32, Type);

const ANY_VALUE: &[Field] = &[
    ("stringValue", 1, Type::Text),
    ("boolValue", 2, Type::Flag),
    ("intValue", 3, Type::Number),
    ("stringValueStrindex", 8, Type::Number),
];
const KEY_VALUE: &[Field] = &[
    ("key", 1, Type::Text),
    ("value", 2, Type::Message(ANY_VALUE)),
    ("keyStrindex", 3, Type::Number),
];
const VALUE_TYPE: &[Field] = &[
    ("typeStrindex", 1, Type::Number),
    ("unitStrindex", 2, Type::Number),
];
const SAMPLE: &[Field] = &[
    ("stackIndex", 1, Type::Number),
    ("attributeIndices", 2, Type::Number),
    ("values", 4, Type::Number),
    ("timestampsUnixNano", 5, Type::Fixed),
];
const PROFILE: &[Field] = &[
    ("sampleType", 1, Type::Message(VALUE_TYPE)),
    ("samples", 2, Type::Message(SAMPLE)),
    ("timeUnixNano", 3, Type::Fixed),
    ("durationNano", 4, Type::Number),
    ("periodType", 5, Type::Message(VALUE_TYPE)),
    ("period", 6, Type::Number),
];
const SCOPE_PROFILES: &[Field] = &[("profiles", 2, Type::Message(PROFILE))];
const RESOURCE: &[Field] = &[("attributes", 1, Type::Message(KEY_VALUE))];
const RESOURCE_PROFILES: &[Field] = &[
    ("resource", 1, Type::Message(RESOURCE)),
    ("scopeProfiles", 2, Type::Message(SCOPE_PROFILES)),
];
const MAPPING: &[Field] = &[
    ("memoryStart", 1, Type::Number),
    ("memoryLimit", 2, Type::Number),
    ("fileOffset", 3, Type::Number),
    ("filenameStrindex", 4, Type::Number),
    ("attributeIndices", 5, Type::Number),
];
const LINE: &[Field] = &[
    ("functionIndex", 1, Type::Number),
    ("line", 2, Type::Number),
    ("column", 3, Type::Number),
];
const LOCATION: &[Field] = &[
    ("mappingIndex", 1, Type::Number),
    ("address", 2, Type::Number),
    ("lines", 3, Type::Message(LINE)),
    ("attributeIndices", 4, Type::Number),
];
const FUNCTION: &[Field] = &[
    ("nameStrindex", 1, Type::Number),
    ("systemNameStrindex", 2, Type::Number),
    ("filenameStrindex", 3, Type::Number),
    ("startLine", 4, Type::Number),
];
const ATTRIBUTE: &[Field] = &[
    ("keyStrindex", 1, Type::Number),
    ("value", 2, Type::Message(ANY_VALUE)),
];
const STACK: &[Field] = &[("locationIndices", 1, Type::Number)];
const DICTIONARY: &[Field] = &[
    ("mappingTable", 1, Type::Message(MAPPING)),
    ("locationTable", 2, Type::Message(LOCATION)),
    ("functionTable", 3, Type::Message(FUNCTION)),
    ("stringTable", 5, Type::Text),
    ("attributeTable", 6, Type::Message(ATTRIBUTE)),
    ("stackTable", 7, Type::Message(STACK)),
];
const PROFILES_DATA: &[Field] = &[
    ("resourceProfiles", 1, Type::Message(RESOURCE_PROFILES)),
    ("dictionary", 2, Type::Message(DICTIONARY)),
];

/// Reads all lines; `None` where the first is something else than OTLP.
pub(super) fn parse(bytes: &[u8], builder: &mut Builder) -> Result<Option<Capture>, Problem> {
    let mut captures = Vec::new();
    for request in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        let request = request.map_err(|error| Problem::Json(error.to_string()))?;
        if captures.is_empty()
            && request.get("resourceProfiles").is_none()
            && request.get("dictionary").is_none()
        {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        encode(&request, PROFILES_DATA, &mut bytes);
        captures.push(otlp::parse(&bytes, builder)?);
    }
    Ok(captures.into_iter().reduce(|mut one, other| {
        one.add(other);
        one
    }))
}

/// Appends the fields of a message.
fn encode(message: &Value, fields: &[Field], out: &mut Vec<u8>) {
    use crate::export::otlp::wire::{bytes, varint};

    for &(name, number, kind) in fields {
        let value = message.get(name).unwrap_or(&Value::Null);
        let values = match value {
            Value::Null => continue,
            Value::Array(values) => values.as_slice(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                std::slice::from_ref(value)
            }
        };
        for value in values {
            match kind {
                Type::Text => bytes(out, number, value.as_str().unwrap_or("").as_bytes()),
                Type::Number | Type::Flag => {
                    varint(out, u64::from(number) << 3);
                    varint(out, integer(value));
                }
                Type::Fixed => {
                    varint(out, u64::from(number) << 3 | 1);
                    out.extend_from_slice(&integer(value).to_le_bytes());
                }
                Type::Message(fields) => {
                    let mut body = Vec::new();
                    encode(value, fields, &mut body);
                    bytes(out, number, &body);
                }
            }
        }
    }
}

/// A number, which is a string where it has 64 bits.
fn integer(value: &Value) -> u64 {
    match value {
        Value::Bool(flag) => u64::from(*flag),
        Value::String(text) => match text.parse() {
            Ok(number) => number,
            Err(_) => text.parse().map_or(0, i64::cast_unsigned),
        },
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .unwrap_or(0),
    }
}

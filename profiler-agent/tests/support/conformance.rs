//! A checker of OTLP Profiles, `v1development`: the rules of the specification's comments, those of profcheck
//! (open-telemetry/sig-profiling), those that it misses, and those that receivers add.
//!
//! It sees bytes and decodes them with opentelemetry-proto: nothing of the encoder under test.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    profiles::v1development::{
        Function, KeyValueAndUnit, Link, Location, Mapping, Profile, ProfilesData, ProfilesDictionary,
        Sample, Stack, ValueType,
    },
};
use prost::Message;

/// What may not be. Each has a broken input in the tests of this checker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The bytes are a `ProfilesData`.
    Decodes,
    /// No fields but those of 1.10, and none with its default value.
    Canonical,
    /// At least one resource, scope, profile, sample.
    Empty,
    /// Parca dereferences a resource and a scope.
    NilResourceOrScope,
    /// The dictionary is there.
    Dictionary,
    /// Every table has a row 0, which is the zero value.
    ZeroRow,
    /// Every index is a row.
    Index,
    /// No two rows of a table are equal.
    DuplicateRow,
    /// Every row but 0 is referred to.
    Orphan,
    /// A mapping begins before it ends, or is unset.
    MappingRange,
    /// A mapping has a build ID.
    BuildId,
    /// An address lies in its mapping.
    AddressOutsideMapping,
    /// A location has a frame type that receivers know.
    FrameType,
    /// Lines and columns are not negative.
    NegativeLine,
    /// A function has at least one name.
    NamelessFunction,
    /// Links are 16 and 8 bytes.
    LinkLength,
    /// No key twice in one list of attributes.
    DuplicateKey,
    /// Attributes have a key and a value.
    AttributeKey,
    /// Attributes of resource and scope are inline: string values and keys, no references.
    InlineAttributes,
    /// Schema URLs are those of OpenTelemetry.
    SchemaUrl,
    /// There is a type of samples, with name and unit.
    SampleType,
    /// There is a type of period, and the period is not negative.
    PeriodType,
    /// The window has a length.
    Duration,
    /// A profile id is empty, or 16 bytes and not zero.
    ProfileId,
    /// Format and bytes of an original payload come together.
    OriginalPayload,
    /// Timestamps lie in the window.
    TimestampOutside,
    /// A sample has timestamps, one value, or as many values as timestamps.
    SampleShape,
    /// All samples of a profile have one shape.
    MixedShapes,
    /// Values count something.
    NonPositiveValue,
    /// No two samples of a profile have the same stack, attributes and link.
    DuplicateSample,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 30] = [
        Self::Decodes,
        Self::Canonical,
        Self::Empty,
        Self::NilResourceOrScope,
        Self::Dictionary,
        Self::ZeroRow,
        Self::Index,
        Self::DuplicateRow,
        Self::Orphan,
        Self::MappingRange,
        Self::BuildId,
        Self::AddressOutsideMapping,
        Self::FrameType,
        Self::NegativeLine,
        Self::NamelessFunction,
        Self::LinkLength,
        Self::DuplicateKey,
        Self::AttributeKey,
        Self::InlineAttributes,
        Self::SchemaUrl,
        Self::SampleType,
        Self::PeriodType,
        Self::Duration,
        Self::ProfileId,
        Self::OriginalPayload,
        Self::TimestampOutside,
        Self::SampleShape,
        Self::MixedShapes,
        Self::NonPositiveValue,
        Self::DuplicateSample,
    ];
}

/// A rule that is broken, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub rule: Rule,
    pub detail: String,
}

/// Frame types that devfiler takes, the pickiest receiver.
const FRAME_TYPES: [&str; 13] = [
    "beam",
    "cpython",
    "dotnet",
    "go",
    "jvm",
    "kernel",
    "native",
    "perl",
    "php",
    "ruby",
    "v8js",
    "unknown",
    "abort-marker",
];

/// Asserts that all rules hold but the excepted ones.
#[track_caller]
pub fn assert_conforms(bytes: &[u8], except: &[Rule]) {
    let mut violations = check(bytes);
    violations.retain(|violation| !except.contains(&violation.rule));
    assert!(violations.is_empty(), "{violations:#?}");
}

/// All violations in a serialized `ProfilesData` or `ExportProfilesServiceRequest`.
pub fn check(bytes: &[u8]) -> Vec<Violation> {
    let mut checker = Checker::default();
    match ProfilesData::decode(bytes) {
        Ok(data) => checker.data(&data, bytes.len()),
        Err(error) => checker.add(Rule::Decodes, error),
    }
    checker.violations.sort();
    checker.violations
}

#[derive(Default)]
struct Checker {
    violations: Vec<Violation>,
    /// Rows that something refers to, by table.
    used: BTreeMap<&'static str, BTreeSet<i32>>,
}

impl Checker {
    #[expect(clippy::needless_pass_by_value, reason = "most details are made for the call")]
    fn add(&mut self, rule: Rule, detail: impl ToString) {
        let detail = detail.to_string();
        self.violations.push(Violation { rule, detail });
    }

    fn require(&mut self, holds: bool, rule: Rule, detail: impl ToString) {
        if !holds {
            self.add(rule, detail);
        }
    }

    /// A row by index; `None` and a violation where there is none.
    fn row<'t, T>(&mut self, name: &'static str, table: &'t [T], index: i32) -> Option<&'t T> {
        self.used.entry(name).or_default().insert(index);
        let row = usize::try_from(index).ok().and_then(|index| table.get(index));
        self.require(
            row.is_some(),
            Rule::Index,
            format!("{name}[{index}] of {}", table.len()),
        );
        row
    }

    fn data(&mut self, data: &ProfilesData, len: usize) {
        self.require(
            data.encoded_len() == len,
            Rule::Canonical,
            format!(
                "{len} bytes, {} without unknown fields and defaults",
                data.encoded_len()
            ),
        );
        let Some(dictionary) = &data.dictionary else {
            self.add(Rule::Dictionary, "no dictionary");
            return;
        };
        self.dictionary(dictionary);
        self.require(
            !data.resource_profiles.is_empty(),
            Rule::Empty,
            "no resource_profiles",
        );
        for (r, resource) in data.resource_profiles.iter().enumerate() {
            self.schema_url(&resource.schema_url);
            match &resource.resource {
                Some(resource) => self.inline(dictionary, &resource.attributes),
                None => self.add(Rule::NilResourceOrScope, format!("resource {r}")),
            }
            self.require(
                !resource.scope_profiles.is_empty(),
                Rule::Empty,
                format!("no scopes in {r}"),
            );
            for scope in &resource.scope_profiles {
                self.schema_url(&scope.schema_url);
                match &scope.scope {
                    Some(scope) => self.inline(dictionary, &scope.attributes),
                    None => self.add(Rule::NilResourceOrScope, format!("scope in {r}")),
                }
                self.require(
                    !scope.profiles.is_empty(),
                    Rule::Empty,
                    format!("no profiles in {r}"),
                );
                for profile in &scope.profiles {
                    self.profile(dictionary, profile);
                }
            }
        }
        self.orphans(dictionary);
    }

    fn dictionary(&mut self, dictionary: &ProfilesDictionary) {
        let ProfilesDictionary {
            mapping_table,
            location_table,
            function_table,
            link_table,
            string_table,
            attribute_table,
            stack_table,
        } = dictionary;
        self.table("mapping", mapping_table);
        self.table("function", function_table);
        self.table("link", link_table);
        self.table("string", string_table);
        self.table("stack", stack_table);
        // These types cannot be hashed.
        let encode = |rows: &mut dyn Iterator<Item = Vec<u8>>| rows.collect::<Vec<_>>();
        self.table(
            "attribute",
            &encode(&mut attribute_table.iter().map(Message::encode_to_vec)),
        );
        self.table(
            "location",
            &encode(&mut location_table.iter().map(Message::encode_to_vec)),
        );

        for KeyValueAndUnit {
            key_strindex,
            value,
            unit_strindex,
        } in attribute_table.iter().skip(1)
        {
            self.row("string", string_table, *unit_strindex);
            let key = self.row("string", string_table, *key_strindex);
            let sound =
                key.is_some_and(|key| !key.is_empty()) && value.as_ref().is_some_and(|v| v.value.is_some());
            self.require(sound, Rule::AttributeKey, format!("attribute {key:?} {value:?}"));
        }
        for mapping in mapping_table.iter().skip(1) {
            self.mapping(dictionary, mapping);
        }
        for Function {
            name_strindex,
            system_name_strindex,
            filename_strindex,
            start_line,
        } in function_table.iter().skip(1)
        {
            let names = [*name_strindex, *system_name_strindex, *filename_strindex];
            for name in names {
                self.row("string", string_table, name);
            }
            self.require(names != [0; 3], Rule::NamelessFunction, "function");
            self.require(
                *start_line >= 0,
                Rule::NegativeLine,
                format!("start_line {start_line}"),
            );
        }
        for location in location_table.iter().skip(1) {
            self.location(dictionary, location);
        }
        for Link { trace_id, span_id } in link_table.iter().skip(1) {
            let sound = trace_id.len() == 16 && span_id.len() == 8;
            self.require(
                sound,
                Rule::LinkLength,
                format!("{} and {}", trace_id.len(), span_id.len()),
            );
        }
        for Stack { location_indices } in stack_table.iter().skip(1) {
            for &index in location_indices {
                self.row("location", location_table, index);
                self.require(index != 0, Rule::Index, "a stack refers to location 0");
            }
        }
    }

    fn table<T: Hash + Eq + Default + Debug>(&mut self, name: &'static str, rows: &[T]) {
        self.require(
            rows.first() == Some(&T::default()),
            Rule::ZeroRow,
            format!("{name}[0]"),
        );
        let mut first = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            if let Some(other) = first.insert(row, index) {
                self.add(
                    Rule::DuplicateRow,
                    format!("{name}[{other}] = {name}[{index}]: {row:?}"),
                );
            }
        }
    }

    fn mapping(&mut self, dictionary: &ProfilesDictionary, mapping: &Mapping) {
        let Mapping {
            memory_start,
            memory_limit,
            file_offset: _,
            filename_strindex,
            attribute_indices,
        } = mapping;
        self.row("string", &dictionary.string_table, *filename_strindex);
        let sound = memory_start < memory_limit || (*memory_start, *memory_limit) == (0, 0);
        self.require(
            sound,
            Rule::MappingRange,
            format!("{memory_start:#x}..{memory_limit:#x}"),
        );
        let keys = self.attributes(dictionary, attribute_indices);
        let identified = keys
            .keys()
            .any(|key| key.starts_with("process.executable.build_id."));
        self.require(identified, Rule::BuildId, format!("mapping {mapping:?}"));
    }

    fn location(&mut self, dictionary: &ProfilesDictionary, location: &Location) {
        let Location {
            mapping_index,
            address,
            lines,
            attribute_indices,
        } = location;
        if let Some(mapping) = self.row("mapping", &dictionary.mapping_table, *mapping_index) {
            let range = mapping.memory_start..mapping.memory_limit;
            let inside = *mapping_index == 0 || range.contains(address);
            self.require(
                inside,
                Rule::AddressOutsideMapping,
                format!("{address:#x} not in {range:x?}"),
            );
        }
        for line in lines {
            self.row("function", &dictionary.function_table, line.function_index);
            let sound = line.line >= 0 && line.column >= 0;
            self.require(sound, Rule::NegativeLine, format!("{line:?}"));
        }
        let attributes = self.attributes(dictionary, attribute_indices);
        let known = attributes.get("profile.frame.type").is_some_and(
            |value| matches!(value, Some(Value::StringValue(text)) if FRAME_TYPES.contains(&text.as_str())),
        );
        self.require(known, Rule::FrameType, format!("{attributes:?}"));
    }

    /// Keys and values of a list of attributes.
    fn attributes<'d>(
        &mut self,
        dictionary: &'d ProfilesDictionary,
        indices: &[i32],
    ) -> BTreeMap<&'d str, Option<&'d Value>> {
        let mut seen = BTreeMap::new();
        for &index in indices {
            self.require(index != 0, Rule::Index, "a list of attributes refers to row 0");
            let Some(row) = self.row("attribute", &dictionary.attribute_table, index) else {
                continue;
            };
            let key = self.row("string", &dictionary.string_table, row.key_strindex);
            let key = key.map_or("", String::as_str);
            let value = row.value.as_ref().and_then(|value| value.value.as_ref());
            let twice = seen.insert(key, value).is_some();
            self.require(!twice, Rule::DuplicateKey, key);
        }
        seen
    }

    /// Attributes as resources and scopes have them.
    fn inline(&mut self, dictionary: &ProfilesDictionary, attributes: &[KeyValue]) {
        let mut seen = HashSet::new();
        for KeyValue {
            key,
            value,
            key_strindex,
        } in attributes
        {
            let mut reference = *key_strindex != 0;
            if let Some(AnyValue {
                value: Some(Value::StringValueStrindex(index)),
            }) = value
            {
                reference = true;
                self.row("string", &dictionary.string_table, *index);
            }
            self.row("string", &dictionary.string_table, *key_strindex);
            self.require(!reference, Rule::InlineAttributes, key);
            self.require(!key.is_empty() && value.is_some(), Rule::AttributeKey, key);
            self.require(seen.insert(key), Rule::DuplicateKey, key);
        }
    }

    fn schema_url(&mut self, url: &str) {
        let version = url.strip_prefix("https://opentelemetry.io/schemas/");
        let sound = version.is_some_and(|version| {
            version.split('.').count() == 3 && version.split('.').all(|part| part.parse::<u32>().is_ok())
        });
        self.require(sound, Rule::SchemaUrl, url);
    }

    fn value_type(&mut self, dictionary: &ProfilesDictionary, value_type: Option<&ValueType>) -> bool {
        let Some(ValueType {
            type_strindex,
            unit_strindex,
        }) = value_type
        else {
            return false;
        };
        [*type_strindex, *unit_strindex].map(|index| {
            self.row("string", &dictionary.string_table, index)
                .is_some_and(|text| !text.is_empty())
        }) == [true; 2]
    }

    fn profile(&mut self, dictionary: &ProfilesDictionary, profile: &Profile) {
        let Profile {
            sample_type,
            samples,
            time_unix_nano,
            duration_nano,
            period_type,
            period,
            profile_id,
            dropped_attributes_count: _,
            original_payload_format,
            original_payload,
            attribute_indices,
        } = profile;
        let typed = self.value_type(dictionary, sample_type.as_ref());
        self.require(typed, Rule::SampleType, format!("{sample_type:?}"));
        // Off-CPU profiles have an empty period type, and no period.
        let named = self.value_type(dictionary, period_type.as_ref());
        let sound = period_type.is_some() && *period >= 0 && (named || *period == 0);
        self.require(sound, Rule::PeriodType, format!("{period_type:?} {period}"));
        self.require(*duration_nano > 0, Rule::Duration, duration_nano);
        let sound =
            profile_id.is_empty() || (profile_id.len() == 16 && profile_id.iter().any(|byte| *byte != 0));
        self.require(sound, Rule::ProfileId, format!("{profile_id:x?}"));
        let sound = original_payload.is_empty() == original_payload_format.is_empty();
        self.require(sound, Rule::OriginalPayload, original_payload_format);
        self.attributes(dictionary, attribute_indices);
        self.require(!samples.is_empty(), Rule::Empty, "no samples");

        let window = *time_unix_nano..time_unix_nano.saturating_add(*duration_nano);
        let (mut shapes, mut identities) = (HashSet::new(), HashSet::new());
        for Sample {
            stack_index,
            attribute_indices,
            link_index,
            values,
            timestamps_unix_nano,
        } in samples
        {
            self.row("stack", &dictionary.stack_table, *stack_index);
            self.row("link", &dictionary.link_table, *link_index);
            self.attributes(dictionary, attribute_indices);
            let set: BTreeSet<i32> = attribute_indices.iter().copied().collect();
            let identity = (stack_index, set, link_index);
            self.require(
                identities.insert(identity.clone()),
                Rule::DuplicateSample,
                format!("{identity:?}"),
            );
            for time in timestamps_unix_nano {
                self.require(
                    window.contains(time),
                    Rule::TimestampOutside,
                    format!("{time} not in {window:?}"),
                );
            }
            let (numbers, times) = (values.len(), timestamps_unix_nano.len());
            let sound = match times {
                0 => numbers == 1,
                _ => numbers == 0 || numbers == times,
            };
            self.require(
                sound,
                Rule::SampleShape,
                format!("{numbers} values, {times} timestamps"),
            );
            shapes.insert((numbers > 0, times > 0));
            let positive = values.iter().all(|value| *value > 0);
            self.require(positive, Rule::NonPositiveValue, format!("{values:?}"));
        }
        self.require(shapes.len() <= 1, Rule::MixedShapes, format!("{shapes:?}"));
    }

    fn orphans(&mut self, dictionary: &ProfilesDictionary) {
        let lengths = [
            ("mapping", dictionary.mapping_table.len()),
            ("location", dictionary.location_table.len()),
            ("function", dictionary.function_table.len()),
            ("link", dictionary.link_table.len()),
            ("string", dictionary.string_table.len()),
            ("attribute", dictionary.attribute_table.len()),
            ("stack", dictionary.stack_table.len()),
        ];
        for (name, length) in lengths {
            for index in (1..).take(length.saturating_sub(1)) {
                let used = self.used.get(name).is_some_and(|used| used.contains(&index));
                self.require(used, Rule::Orphan, format!("{name}[{index}]"));
            }
        }
    }
}

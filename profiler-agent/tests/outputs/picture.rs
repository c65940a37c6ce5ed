//! The SVG: well-formed whatever the names are, and the same numbers as everywhere.

use profiler_agent::{
    export::folded::Options,
    profile::Profile,
    render::svg::{self, SvgError},
};
use proptest::prelude::*;
use quick_xml::{events::Event, reader::Reader};

use crate::support::{golden, profiles};

fn draw(profile: &Profile) -> String {
    let mut out = Vec::new();
    svg::write(profile, &Options::default(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Every text in the picture, unescaped, and the `total_samples` of its frames. Fails where an XML parser would.
fn read(svg: &str) -> (Vec<String>, u64) {
    let mut reader = Reader::from_str(svg);
    reader.config_mut().enable_all_checks(true);
    let (mut texts, mut total, mut script) = (Vec::new(), 0, 0);
    let mut text = String::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Eof => break,
            Event::Start(tag) | Event::Empty(tag) => {
                text.clear();
                script += u32::from(tag.name().as_ref() == b"script");
                for attribute in tag.attributes() {
                    let attribute = attribute.unwrap();
                    if attribute.key.as_ref() == b"total_samples" {
                        total = String::from_utf8_lossy(&attribute.value).parse().unwrap();
                    }
                    let key = attribute.key.as_ref();
                    assert!(!key.starts_with(b"on") || attribute.value.as_ref() == b"init(evt)");
                }
            }
            Event::Text(part) => text.push_str(&part.decode().unwrap()),
            Event::GeneralRef(part) => {
                let name = part.decode().unwrap();
                text.push_str(match &*name {
                    "lt" => "<",
                    "gt" => ">",
                    "amp" => "&",
                    "quot" => "\"",
                    "apos" => "'",
                    other => panic!("entity {other}"),
                });
            }
            Event::End(_) => texts.push(std::mem::take(&mut text)),
            Event::CData(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
    assert_eq!(script, 1, "only inferno's own script");
    assert!(
        texts
            .iter()
            .flat_map(|text| text.chars())
            .all(|c| c == '\n' || profiler_agent::export::text::is_plain(c))
    );
    (texts, total)
}

#[test]
fn server() {
    let profile = profiles::server();
    let svg = draw(&profile);
    let (texts, total) = read(&svg);
    assert_eq!(total, profile.sample_count());
    let all = texts.join("\n");
    for expected in [
        "shop-server (4242)",
        "2026-11-21T04:11:53Z to 2026-11-21T04:12:21Z (28.0 s)",
        "host web-1.example",
        "99 Hz cpu-clock",
        "2,800 samples",
        "3 lost",
        "100 incomplete",
        "shop::db::Pool::query (1,100 samples, 39.29%)",
        "copy_user_enhanced_fast_string (320 samples, 11.43%)",
        // The legend.
        "process",
        "function",
        "inlined function",
        "kernel",
        "generated code",
        "stack not whole",
    ] {
        assert!(all.contains(expected), "{expected:?} is not in {all}");
    }
    assert!(
        !all.contains("code without a name"),
        "there is none in the picture"
    );
    assert_eq!(svg, draw(&profile), "the same profile gives the same bytes");
    golden::check("server.svg", svg.as_bytes());
}

#[test]
fn nothing_to_draw() {
    let mut profile = profiles::server();
    profile.samples.clear();
    let result = svg::write(&profile, &Options::default(), &mut Vec::new());
    assert!(matches!(result, Err(SvgError::NoSamples)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn well_formed_and_complete(profile in profiles::arbitrary()) {
        let (_, total) = read(&draw(&profile));
        prop_assert_eq!(total, profile.sample_count());
    }
}

//! Rules survive being packed, and every row reads back.

use profiler_common::row::{Base, Packed, Row, Rule, SavedBp, SavedBx};
use proptest::prelude::*;

fn displacement() -> impl Strategy<Value = i16> {
    (-2048_i16..2048).prop_map(|words| words * 8)
}

fn base() -> impl Strategy<Value = Base> {
    prop_oneof![
        Just(Base::Sp),
        Just(Base::Bp),
        (0_u8..17).prop_map(Base::Register),
        displacement().prop_map(Base::DerefBp),
        displacement().prop_map(Base::DerefSp),
    ]
}

fn saved_bp() -> impl Strategy<Value = SavedBp> {
    prop_oneof![
        Just(SavedBp::Same),
        displacement().prop_map(SavedBp::AtCfa),
        displacement().prop_map(SavedBp::AtBp),
    ]
}

fn saved_bx() -> impl Strategy<Value = SavedBx> {
    prop_oneof![
        Just(SavedBx::Same),
        (2_u8..8).prop_map(SavedBx::Below),
        Just(SavedBx::Lost),
    ]
}

proptest! {
    #[test]
    fn a_frame_rule_survives_either_form(
        base in base(),
        offset in prop_oneof![any::<i32>(), (0_i32..2000).prop_map(|words| words * 8)],
        bp in saved_bp(),
        bx in saved_bx(),
        address in 0_u32..4096,
    ) {
        let rule = Rule::Cfa { base, offset, bp, bx };
        let entry = rule.entry().expect("displacements of whole words");
        prop_assert_eq!(Rule::of_entry(entry), rule);
        if let Some(bits) = rule.pack() {
            let row = Row::new(address, bits);
            prop_assert_eq!(row.address_in_page(), address);
            prop_assert_eq!(row.rule(), Packed::Rule(rule));
        }
    }

    #[test]
    fn another_offset_is_the_same_rule_with_it(
        base in base(),
        offsets in [0_i32..1200, 0_i32..1200].prop_map(|words| words.map(|words| words * 8 - 40)),
        off in 0_i32..8,
        bp in saved_bp(),
        bx in saved_bx(),
    ) {
        let [one, other] = offsets.map(|offset| Rule::Cfa { base, offset, bp, bx }.pack());
        let bits = one.and_then(|bits| Rule::with_offset(bits, offsets[1]));
        prop_assert_eq!(bits, one.and(other));
        prop_assert_eq!(one.and_then(|bits| Rule::with_offset(bits, offsets[0] + off)), one.filter(|_| off == 0));
        prop_assert_eq!(Rule::with_offset(Rule::NO_BITS, 8), None);
    }

    #[test]
    fn entries_are_told_from_rules(number in 0..profiler_common::row::MAX_ENTRIES, address in 0_u32..4096) {
        prop_assert!(Rule::is_entry(Rule::pack_entry(number)));
        prop_assert!(![Rule::NO_BITS, Rule::END_BITS, Rule::SIGNAL_BITS].into_iter().any(Rule::is_entry));
        let row = Row::new(address, Rule::pack_entry(number));
        prop_assert_eq!((row.address_in_page(), row.rule()), (address, Packed::Entry(number)));
    }

    #[test]
    fn rows_are_in_the_order_of_their_addresses(a in 0_u32..4096, b in 0_u32..4096, x in any::<u32>(), y in any::<u32>()) {
        prop_assert!(a == b || (Row::new(a, x) < Row::new(b, y)) == (a < b));
    }
}

#[test]
fn rules_without_operands_survive() {
    let rules = [
        Rule::End,
        Rule::None,
        Rule::Unsupported,
        Rule::Signal,
        Rule::FramePointer,
        Rule::Frameless,
    ];
    for rule in rules
        .into_iter()
        .chain((0..16).map(Rule::Plt))
        .chain((0..16).map(Rule::ReturnIn))
    {
        assert_eq!(Row::new(5, rule.pack().unwrap()).rule(), Packed::Rule(rule));
        assert_eq!(rule.entry(), None);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let cfa = |offset, bp| Rule::Cfa {
        base: Base::Sp,
        offset,
        bp,
        bx: SavedBx::Same,
    };
    for rule in [
        cfa(12, SavedBp::Same),
        cfa(-8, SavedBp::Same),
        cfa(8192, SavedBp::Same),
        cfa(16, SavedBp::AtCfa(8)),
        cfa(16, SavedBp::AtCfa(-256)),
        cfa(16, SavedBp::AtBp(0)),
    ] {
        assert_eq!(rule.pack(), None, "{rule:?}");
    }
    assert_eq!(cfa(16, SavedBp::AtCfa(-12)).entry(), None);
    assert_eq!(cfa(16, SavedBp::AtCfa(16384)).entry(), None);
}

//! Protocol buffers, as much as an encoder needs: <https://protobuf.dev/programming-guides/encoding/>.
//!
//! Written by hand so that names are copied once, from the profile into the request, and so that the real size
//! is known while a request grows. Fields with the default value are left out, as proto3 has it.

/// Appends a base-128 varint.
#[inline]
pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    // Nearly all are of one or two bytes.
    if value < 0x80 {
        out.push(low(value));
        return;
    }
    if value < 0x4000 {
        out.extend_from_slice(&[low(value) | 0x80, low(value >> 7)]);
        return;
    }
    while value >= 0x80 {
        out.push(low(value) | 0x80);
        value >>= 7;
    }
    out.push(low(value));
}

/// The lowest byte.
#[inline]
const fn low(value: u64) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low
}

/// Bytes of a varint: a seventh of its bits, which 9/64 is for so few.
pub(super) const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    ((bits * 9 + 64) / 64) as usize
}

/// Bytes of a field of so many bytes, whose number is below 16.
pub(super) const fn bytes_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Appends an integer field (`int32`, `int64`, `uint64`).
pub(super) fn uint(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        varint(out, u64::from(field) << 3);
        varint(out, value);
    }
}

/// Appends a `fixed64` field.
pub(super) fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        varint(out, u64::from(field) << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Appends a field of bytes, a string, or a message that is encoded already; an empty one too, since elements of
/// repeated fields and messages that are present but empty mean something.
pub(crate) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends a string field, unless it is empty.
pub(super) fn string(out: &mut Vec<u8>, field: u32, value: &str) {
    if !value.is_empty() {
        bytes(out, field, value.as_bytes());
    }
}

/// Bytes of the varints of a packed field.
fn varints_len(values: &[u32]) -> usize {
    // By comparisons, which the compiler makes of several values at a time.
    let further = values.iter().map(|&value| {
        u32::from(value >= 1 << 7)
            + u32::from(value >= 1 << 14)
            + u32::from(value >= 1 << 21)
            + u32::from(value >= 1 << 28)
    });
    values.len() + further.sum::<u32>() as usize
}

/// Appends a message as a field, whose only field is a packed one of varints with a number below 16; an empty message if there are none.
pub(super) fn message_of_packed(out: &mut Vec<u8>, message: u32, field: u32, values: &[u32]) {
    let len = varints_len(values);
    varint(out, u64::from(message) << 3 | 2);
    varint(
        out,
        if values.is_empty() {
            0
        } else {
            bytes_len(len) as u64
        },
    );
    packed_of_len(out, field, values, len);
}

/// Appends a packed field of varints, unless there are none.
pub(super) fn packed(out: &mut Vec<u8>, field: u32, values: &[u32]) {
    packed_of_len(out, field, values, varints_len(values));
}

/// The same, of varints of so many bytes.
fn packed_of_len(out: &mut Vec<u8>, field: u32, values: &[u32], len: usize) {
    if values.is_empty() {
        return;
    }
    varint(out, u64::from(field) << 3 | 2);
    varint(out, len as u64);
    let start = out.len();
    out.resize(start + len, 0);
    // There is room for each, so that none is asked for.
    let mut room = out.iter_mut().skip(start);
    let mut put = |byte| {
        if let Some(place) = room.next() {
            *place = byte;
        }
    };
    for &value in values {
        let mut value = u64::from(value);
        while value >= 0x80 {
            put(low(value) | 0x80);
            value >>= 7;
        }
        put(low(value));
    }
}

/// Appends the head of a packed field of `count` numbers of 8 bytes; they follow.
pub(super) fn packed_fixed64_head(out: &mut Vec<u8>, field: u32, count: usize) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, (count as u64).saturating_mul(8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_as_prost_writes_them() {
        for value in [
            0,
            1,
            127,
            128,
            300,
            0x3fff,
            0x4000,
            u64::from(u32::MAX),
            u64::MAX / 2,
            u64::MAX,
        ] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            varint(&mut ours, value);
            prost::encoding::encode_varint(value, &mut theirs);
            assert_eq!(ours, theirs);
            assert_eq!(varint_len(value), ours.len());
        }
        for bits in 0..64 {
            for value in [1 << bits, (1_u64 << bits) - 1] {
                assert_eq!(varint_len(value), prost::encoding::encoded_len_varint(value));
            }
        }
    }

    #[test]
    fn packed_fields_as_prost_writes_them() {
        let all = [
            0,
            1,
            127,
            128,
            0x3fff,
            0x4000,
            0x1f_ffff,
            0x20_0000,
            1 << 28,
            u32::MAX,
        ];
        for values in [&all[..], &all[..1], &[]] {
            let (mut ours, mut theirs) = (vec![7], vec![7]);
            packed(&mut ours, 3, values);
            prost::encoding::uint32::encode_packed(3, values, &mut theirs);
            assert_eq!(ours, theirs);
            let mut message = Vec::new();
            message_of_packed(&mut message, 9, 3, values);
            let mut expected = Vec::new();
            bytes(&mut expected, 9, theirs.get(1..).unwrap_or_default());
            assert_eq!(message, expected);
        }
    }
}

//! Protocol buffers, as much as an encoder needs: <https://protobuf.dev/programming-guides/encoding/>.
//!
//! Written by hand so that names are copied once, from the profile into the request, and so that the real size
//! is known while a request grows. Fields with the default value are left out, as proto3 has it.

/// Appends a base-128 varint.
#[inline]
pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    // Nearly all are of one or two bytes.
    if value < 0x80 {
        out.push(u8::try_from(value).unwrap_or(0));
        return;
    }
    if value < 0x4000 {
        let [low, high] = [value & 0x7f | 0x80, value >> 7].map(|half| u8::try_from(half).unwrap_or(0));
        out.extend_from_slice(&[low, high]);
        return;
    }
    while value >= 0x80 {
        // The mask makes it fit.
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

/// Bytes of a varint.
pub(super) const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
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
    values.iter().map(|&value| varint_len(value.into())).sum()
}

/// Bytes of a packed field, whose number is below 16.
pub(super) fn packed_len(values: &[u32]) -> usize {
    if values.is_empty() {
        0
    } else {
        bytes_len(varints_len(values))
    }
}

/// Appends a packed field of varints, unless there are none.
pub(super) fn packed(out: &mut Vec<u8>, field: u32, values: &[u32]) {
    if values.is_empty() {
        return;
    }
    let len = varints_len(values);
    varint(out, u64::from(field) << 3 | 2);
    varint(out, len as u64);
    for &value in values {
        varint(out, value.into());
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
    }
}

//! The dictionary of one request: the rows that its samples need, and no others.

use super::{
    prepare::{
        Attribute, BY_FRAME_POINTER, CONSTANTS, GENERATED, Prepared, UNKNOWN, is_generated, lines,
        mangled_name,
    },
    wire::{bytes, bytes_len, message_of_packed, packed, uint, varint, varint_len},
};

/// Rows of one table, encoded as elements of the dictionary. Row 0 is the zero value.
///
/// Rows can be taken back in the order they came, so that a sample that does not fit leaves no trace.
#[derive(Debug, Default)]
struct Table {
    /// For each row of the profile's table its row here; 0 is none.
    rows: Vec<u32>,
    /// Rows of the profile's table, in the order they came.
    order: Vec<u32>,
    /// The elements.
    encoded: Vec<u8>,
    /// The table's field in the dictionary.
    field: u32,
}

impl Table {
    /// With room for so many bytes.
    fn new(field: u32, rows: usize, room: usize) -> Self {
        let mut table = Self {
            rows: vec![0; rows],
            order: Vec::with_capacity(rows),
            encoded: Vec::with_capacity(room),
            field,
        };
        // The zero row: an empty message, or the empty string.
        bytes(&mut table.encoded, field, &[]);
        table
    }

    fn row(&self, id: u32) -> Option<u32> {
        self.rows.get(id as usize).copied().filter(|row| *row != 0)
    }

    /// Adds a row that is not there; answers 0 for one that the profile does not have.
    fn push(&mut self, id: u32, body: &[u8]) -> u32 {
        self.push_with(id, |out, field| bytes(out, field, body))
    }

    /// The same, for what appends the element itself.
    fn push_with(&mut self, id: u32, append: impl FnOnce(&mut Vec<u8>, u32)) -> u32 {
        let Some(slot) = self.rows.get_mut(id as usize) else {
            return 0;
        };
        self.order.push(id);
        *slot = u32::try_from(self.order.len()).unwrap_or(0);
        append(&mut self.encoded, self.field);
        *slot
    }

    const fn mark(&self) -> (usize, usize) {
        (self.order.len(), self.encoded.len())
    }

    fn rewind(&mut self, (rows, encoded): (usize, usize)) {
        for id in self.order.drain(rows..) {
            if let Some(slot) = self.rows.get_mut(id as usize) {
                *slot = 0;
            }
        }
        self.encoded.truncate(encoded);
    }
}

/// How far a [`Dictionary`] had grown.
pub(super) type Mark = [(usize, usize); 6];

/// The tables.
#[derive(Debug)]
pub(super) struct Dictionary<'p, 'a> {
    prepared: &'p Prepared<'a>,
    mappings: Table,
    locations: Table,
    functions: Table,
    strings: Table,
    attributes: Table,
    stacks: Table,
    /// The body of a row, while it is made.
    body: Vec<u8>,
    /// Rows of the frames of a stack, or of the functions of a location, while they are looked up.
    frames: Vec<u32>,
    functions_of_lines: Vec<u32>,
}

/// Field of the link table, which holds its zero row alone.
const LINK_TABLE: u32 = 4;

impl<'p, 'a> Dictionary<'p, 'a> {
    /// With room for all rows, or for a request of the limit, so that the tables do not grow.
    pub(super) fn new(prepared: &'p Prepared<'a>, limit: usize) -> Self {
        let profile = prepared.profile;
        let texts: usize = profile.strings.iter().map(|text| text.len()).sum();
        let strings = profile.strings.len() + CONSTANTS.len();
        let lines: usize = profile
            .locations
            .iter()
            .map(|location| location.lines.len())
            .sum();
        let frames: usize = profile.stacks.iter().map(|stack| stack.frames.len()).sum();
        // Tags, lengths and numbers of common rows.
        let table = |field, rows, bytes: usize| Table::new(field, rows, bytes.min(limit) + 2);
        Self {
            prepared,
            mappings: table(1, profile.mappings.len(), profile.mappings.len() * 48),
            locations: table(
                2,
                profile.locations.len(),
                profile.locations.len() * 24 + lines * 12,
            ),
            functions: table(3, profile.functions.len(), profile.functions.len() * 20),
            strings: table(5, strings, texts + strings * 4 + 512),
            attributes: table(6, prepared.attributes.len(), prepared.attributes.len() * 72),
            stacks: table(7, profile.stacks.len(), profile.stacks.len() * 10 + frames * 3),
            body: Vec::with_capacity(1024),
            frames: Vec::with_capacity(1024),
            functions_of_lines: Vec::with_capacity(64),
        }
    }

    /// Size of the encoded message, without its own tag and length.
    pub(super) fn len(&self) -> usize {
        // The link table's row takes a tag and a length.
        self.tables()
            .iter()
            .map(|table| table.encoded.len())
            .sum::<usize>()
            + 2
    }

    /// Appends the encoded message.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut written_links = false;
        for table in self.tables() {
            if table.field > LINK_TABLE && !written_links {
                bytes(out, LINK_TABLE, &[]);
                written_links = true;
            }
            out.extend_from_slice(&table.encoded);
        }
    }

    pub(super) fn mark(&self) -> Mark {
        self.tables().map(Table::mark)
    }

    pub(super) fn rewind(&mut self, mark: Mark) {
        let tables = [
            &mut self.mappings,
            &mut self.locations,
            &mut self.functions,
            &mut self.strings,
            &mut self.attributes,
            &mut self.stacks,
        ];
        for (table, mark) in tables.into_iter().zip(mark) {
            table.rewind(mark);
        }
    }

    /// Takes back every row but the zero rows; keeps the memory.
    pub(super) fn clear(&mut self) {
        // A zero row is a tag and a length.
        self.rewind([(0, 2); 6]);
    }

    /// Adds locations before any stack has them, in this order, as long as the message is below a limit; whether that was to the end. All of
    /// them must come to be referred to.
    pub(super) fn add_locations(&mut self, ids: impl Iterator<Item = u32>, limit: usize) -> bool {
        for id in ids {
            self.location(id);
            if self.len() > limit {
                return false;
            }
        }
        true
    }

    /// Every table but the links, by field.
    const fn tables(&self) -> [&Table; 6] {
        [
            &self.mappings,
            &self.locations,
            &self.functions,
            &self.strings,
            &self.attributes,
            &self.stacks,
        ]
    }

    /// Row of a string of the profile, or of a constant behind them.
    pub(super) fn string(&mut self, id: u32) -> u32 {
        let text = self.prepared.string(id);
        if text.is_empty() {
            return 0;
        }
        match self.strings.row(id) {
            Some(row) => row,
            None => self.strings.push(id, text.as_bytes()),
        }
    }

    /// Row of one of [`CONSTANTS`], by its text.
    pub(super) fn constant(&mut self, text: &str) -> u32 {
        let place = CONSTANTS.iter().position(|constant| *constant == text);
        let id = place.and_then(|place| self.prepared.constants.get(place).copied());
        id.map_or(0, |id| self.string(id))
    }

    /// Row of an attribute: `KeyValueAndUnit { key_strindex = 1, value = 2 }`.
    pub(super) fn attribute(&mut self, id: u32) -> u32 {
        if let Some(row) = self.attributes.row(id) {
            return row;
        }
        let Some(&attribute) = self.prepared.attributes.get(id as usize) else {
            return 0;
        };
        let key = self.prepared.constants.get(attribute.key()).copied();
        let key = key.map_or(0, |key| self.string(key));
        self.body.clear();
        uint(&mut self.body, 1, key.into());
        let profile = self.prepared.profile;
        match attribute {
            Attribute::FrameType(text) => text_value(&mut self.body, 2, &[text]),
            Attribute::Outcome(outcome) => text_value(&mut self.body, 2, &[outcome.name()]),
            Attribute::Unwinding(unwinding) => text_value(&mut self.body, 2, &[unwinding.name()]),
            Attribute::ByFramePointer => text_value(&mut self.body, 2, &[BY_FRAME_POINTER]),
            Attribute::Generated => text_value(&mut self.body, 2, &[GENERATED]),
            Attribute::ThreadName(id) | Attribute::GoBuildId(id) | Attribute::Remark(id) => {
                text_value(&mut self.body, 2, &[profile.string(id)]);
            }
            Attribute::BuildId(id) => hex_value(&mut self.body, 2, id),
            Attribute::Htlhash(hash) => hex_value(&mut self.body, 2, &hash),
            Attribute::ThreadId(number) | Attribute::Cpu(number) => {
                number_value(&mut self.body, 2, number);
            }
        }
        self.attributes.push(id, &self.body)
    }

    /// Row of a stack: `Stack { location_indices = 1 }`.
    pub(super) fn stack(&mut self, id: u32) -> u32 {
        if let Some(row) = self.stacks.row(id) {
            return row;
        }
        let Some(stack) = self.prepared.profile.stacks.get(id as usize) else {
            return 0;
        };
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        frames.extend(stack.frames.iter().map(|frame| self.location(frame.0)));
        let row = self
            .stacks
            .push_with(id, |out, field| message_of_packed(out, field, 1, &frames));
        self.frames = frames;
        row
    }

    /// Row of a location: `Location { mapping_index = 1, address = 2, lines = 3, attribute_indices = 4 }`.
    fn location(&mut self, id: u32) -> u32 {
        let id = self.prepared.locations.get(id as usize).copied().unwrap_or(id);
        if let Some(row) = self.locations.row(id) {
            return row;
        }
        let Some(location) = self.prepared.profile.locations.get(id as usize) else {
            return 0;
        };
        let mapping = location.mapping.map_or(0, |mapping| self.mapping(mapping.0));
        let frame_type = self.prepared.frame_types.get(id as usize).copied();
        let frame_type = frame_type.map_or(0, |id| self.attribute(id));
        let by_frame_pointer = self
            .prepared
            .by_frame_pointer
            .filter(|_| location.by_frame_pointer)
            .map(|id| self.attribute(id));
        let generated = self
            .prepared
            .generated
            .filter(|_| is_generated(location))
            .map(|id| self.attribute(id));
        let lines = lines(self.prepared.profile, location, self.prepared.names);
        let mut functions = std::mem::take(&mut self.functions_of_lines);
        functions.clear();
        functions.extend(lines.iter().map(|line| self.function(line.function.0)));
        self.body.clear();
        uint(&mut self.body, 1, mapping.into());
        uint(&mut self.body, 2, location.address);
        for (line, &function) in lines.iter().zip(&functions) {
            // `Line { function_index = 1, line = 2, column = 3 }`
            let numbers = [function, line.line, line.column].map(u64::from);
            varint(&mut self.body, 3 << 3 | 2);
            let used = numbers.iter().filter(|&&number| number != 0);
            varint(
                &mut self.body,
                used.map(|&number| 1 + varint_len(number)).sum::<usize>() as u64,
            );
            for (field, number) in (1..).zip(numbers) {
                uint(&mut self.body, field, number);
            }
        }
        self.functions_of_lines = functions;
        let rows = [Some(frame_type), by_frame_pointer, generated];
        packed_some(&mut self.body, 4, rows);
        self.locations.push(id, &self.body)
    }

    /// Row of a mapping: `Mapping { memory_start = 1, memory_limit = 2, file_offset = 3, filename_strindex = 4,
    /// attribute_indices = 5 }`.
    fn mapping(&mut self, id: u32) -> u32 {
        let Some(id) = self.prepared.mappings.get(id as usize).copied().flatten() else {
            return 0;
        };
        if let Some(row) = self.mappings.row(id) {
            return row;
        }
        let Some(mapping) = self.prepared.profile.mappings.get(id as usize) else {
            return 0;
        };
        let path = self.string(mapping.path.0);
        let attributes = self.prepared.mapping_attributes.get(id as usize).copied();
        let attributes = attributes.map(|ids| ids.map(|id| id.map(|id| self.attribute(id))));
        self.body.clear();
        uint(&mut self.body, 1, mapping.start);
        uint(&mut self.body, 2, mapping.limit);
        uint(&mut self.body, 3, mapping.file_offset);
        uint(&mut self.body, 4, path.into());
        if let Some(attributes) = attributes {
            packed_some(&mut self.body, 5, attributes);
        }
        self.mappings.push(id, &self.body)
    }

    /// Row of a function: `Function { name_strindex = 1, system_name_strindex = 2, filename_strindex = 3,
    /// start_line = 4 }`.
    fn function(&mut self, id: u32) -> u32 {
        let id = self.prepared.functions.get(id as usize).copied().unwrap_or(id);
        if let Some(row) = self.functions.row(id) {
            return row;
        }
        let Some(function) = self.prepared.profile.functions.get(id as usize) else {
            return 0;
        };
        let mangled = mangled_name(self.prepared.profile, function, self.prepared.names);
        let [mut name, system_name, file] =
            [function.name, mangled, function.file].map(|text| self.string(text.0));
        if (name, system_name, file) == (0, 0, 0) {
            // A function must have one of its names.
            name = self.constant(UNKNOWN);
        }
        self.body.clear();
        uint(&mut self.body, 1, name.into());
        uint(&mut self.body, 2, system_name.into());
        uint(&mut self.body, 3, file.into());
        uint(&mut self.body, 4, function.start_line.into());
        self.functions.push(id, &self.body)
    }
}

/// Appends a packed field of those numbers that there are.
pub(super) fn packed_some<const N: usize>(out: &mut Vec<u8>, field: u32, numbers: [Option<u32>; N]) {
    let (mut present, mut count) = ([0; N], 0);
    for (slot, number) in present.iter_mut().zip(numbers.into_iter().flatten()) {
        *slot = number;
        count += 1;
    }
    packed(out, field, present.get(..count).unwrap_or_default());
}

/// Appends an `AnyValue { string_value = 1 }` as a field; the string comes in parts. A oneof that is set is written, even if it is empty.
fn text_value(out: &mut Vec<u8>, field: u32, parts: &[&str]) {
    let len = parts.iter().map(|part| part.len()).sum();
    varint(out, u64::from(field) << 3 | 2);
    varint(out, bytes_len(len) as u64);
    varint(out, 1 << 3 | 2);
    varint(out, len as u64);
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The same of bytes in hexadecimal.
fn hex_value(out: &mut Vec<u8>, field: u32, raw: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let len = raw.len() * 2;
    varint(out, u64::from(field) << 3 | 2);
    varint(out, bytes_len(len) as u64);
    varint(out, 1 << 3 | 2);
    varint(out, len as u64);
    let digit = |half: u8| DIGITS.get(usize::from(half)).copied().unwrap_or(b'0');
    out.extend(raw.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

/// Appends an `AnyValue { int_value = 3 }` as a field, even if it is 0.
fn number_value(out: &mut Vec<u8>, field: u32, number: u32) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, 1 + varint_len(number.into()) as u64);
    varint(out, 3 << 3);
    varint(out, number.into());
}

/// `KeyValue { key = 1, value = 2 }` with a string, as resources have them; the string comes in parts.
pub(super) fn text_attribute(out: &mut Vec<u8>, field: u32, key: &str, parts: &[&str]) {
    let len = parts.iter().map(|part| part.len()).sum();
    varint(out, u64::from(field) << 3 | 2);
    varint(out, (bytes_len(key.len()) + bytes_len(bytes_len(len))) as u64);
    bytes(out, 1, key.as_bytes());
    text_value(out, 2, parts);
}

/// The same with a number.
pub(super) fn number_attribute(out: &mut Vec<u8>, field: u32, key: &str, number: u32) {
    varint(out, u64::from(field) << 3 | 2);
    let value = 1 + varint_len(number.into());
    varint(out, (bytes_len(key.len()) + bytes_len(value)) as u64);
    bytes(out, 1, key.as_bytes());
    number_value(out, 2, number);
}

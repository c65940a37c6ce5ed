//! The dictionary of one request: the rows that its samples need, and no others.

use super::{
    prepare::{Attribute, CONSTANTS, Prepared, UNKNOWN, lines, mangled_name},
    wire::{bytes, packed, string, uint},
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
    fn new(field: u32, rows: usize) -> Self {
        let mut table = Self {
            rows: vec![0; rows],
            field,
            ..Self::default()
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
        let Some(slot) = self.rows.get_mut(id as usize) else {
            return 0;
        };
        self.order.push(id);
        *slot = u32::try_from(self.order.len()).unwrap_or(0);
        bytes(&mut self.encoded, self.field, body);
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
    /// Bodies of rows, while they are made.
    body: Vec<u8>,
    nested: Vec<u8>,
}

/// Field of the link table, which holds its zero row alone.
const LINK_TABLE: u32 = 4;

impl<'p, 'a> Dictionary<'p, 'a> {
    pub(super) fn new(prepared: &'p Prepared<'a>) -> Self {
        let profile = prepared.profile;
        Self {
            prepared,
            mappings: Table::new(1, profile.mappings.len()),
            locations: Table::new(2, profile.locations.len()),
            functions: Table::new(3, profile.functions.len()),
            strings: Table::new(5, profile.strings.len() + CONSTANTS.len()),
            attributes: Table::new(6, prepared.attributes.len()),
            stacks: Table::new(7, profile.stacks.len()),
            body: Vec::new(),
            nested: Vec::new(),
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

    /// Adds locations before any stack has them, in this order. All of them must come to be referred to.
    pub(super) fn add_locations(&mut self, ids: &[u32]) {
        for &id in ids {
            self.location(id);
        }
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
        // `AnyValue { string_value = 1, int_value = 3 }`. A oneof that is set is written, even if it is 0.
        let value = &mut self.nested;
        value.clear();
        match attribute {
            Attribute::FrameType(text) | Attribute::Outcome(text) | Attribute::Unwinding(text) => {
                bytes(value, 1, text.as_bytes());
            }
            Attribute::ByFramePointer => bytes(value, 1, super::prepare::BY_FRAME_POINTER.as_bytes()),
            Attribute::Generated => bytes(value, 1, super::prepare::GENERATED.as_bytes()),
            Attribute::ThreadName(name) => bytes(value, 1, self.prepared.profile.string(name).as_bytes()),
            Attribute::GoBuildId(id) | Attribute::Remark(id) => {
                bytes(value, 1, self.prepared.profile.string(id).as_bytes());
            }
            Attribute::BuildId(id) => bytes(value, 1, hex(id).as_bytes()),
            Attribute::Htlhash(hash) => bytes(value, 1, hex(&hash).as_bytes()),
            Attribute::ThreadId(number) | Attribute::Cpu(number) => {
                value.push(3 << 3);
                super::wire::varint(value, number.into());
            }
        }
        self.body.clear();
        uint(&mut self.body, 1, key.into());
        bytes(&mut self.body, 2, &self.nested);
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
        let frames: Vec<u32> = stack.frames.iter().map(|frame| self.location(frame.0)).collect();
        self.body.clear();
        packed(&mut self.body, 1, &frames);
        self.stacks.push(id, &self.body)
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
            .filter(|_| location.kind == crate::profile::FrameKind::Jit(crate::profile::Runtime::Unknown))
            .map(|id| self.attribute(id));
        let lines = lines(self.prepared.profile, location, self.prepared.names);
        let functions: Vec<u32> = lines.iter().map(|line| self.function(line.function.0)).collect();
        self.body.clear();
        uint(&mut self.body, 1, mapping.into());
        uint(&mut self.body, 2, location.address);
        for (line, function) in lines.iter().zip(functions) {
            // `Line { function_index = 1, line = 2, column = 3 }`
            self.nested.clear();
            uint(&mut self.nested, 1, function.into());
            uint(&mut self.nested, 2, line.line.into());
            uint(&mut self.nested, 3, line.column.into());
            bytes(&mut self.body, 3, &self.nested);
        }
        let attributes: Vec<u32> = [Some(frame_type), by_frame_pointer, generated]
            .into_iter()
            .flatten()
            .collect();
        packed(&mut self.body, 4, &attributes);
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
        let mapping_attributes: Vec<u32> = self
            .prepared
            .mapping_attributes
            .get(id as usize)
            .into_iter()
            .flatten()
            .map(|&id| self.attribute(id))
            .collect();
        self.body.clear();
        uint(&mut self.body, 1, mapping.start);
        uint(&mut self.body, 2, mapping.limit);
        uint(&mut self.body, 3, mapping.file_offset);
        uint(&mut self.body, 4, path.into());
        packed(&mut self.body, 5, &mapping_attributes);
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

/// `KeyValue { key = 1, value = 2 }` with a string, as resources have them.
pub(super) fn text_attribute(out: &mut Vec<u8>, field: u32, key: &str, text: &str) {
    let (mut value, mut pair) = (Vec::new(), Vec::new());
    bytes(&mut value, 1, text.as_bytes());
    string(&mut pair, 1, key);
    bytes(&mut pair, 2, &value);
    bytes(out, field, &pair);
}

/// The same with a number.
pub(super) fn number_attribute(out: &mut Vec<u8>, field: u32, key: &str, number: u32) {
    let (mut value, mut pair) = (vec![3 << 3], Vec::new());
    super::wire::varint(&mut value, number.into());
    string(&mut pair, 1, key);
    bytes(&mut pair, 2, &value);
    bytes(out, field, &pair);
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! A day in the life of SQLite: fill a table, index it, join, aggregate, search by pattern.
//!
//! The work is done in a thread, because the C library's code before `main` has no frame pointers.

use rusqlite::{Connection, Result};

/// Orders in the table.
const ORDERS: u32 = 60_000;
/// Customers they belong to.
const CUSTOMERS: u32 = 3_000;
/// How often everything is done.
const ROUNDS: u32 = 40;

fn main() -> Result<()> {
    match std::thread::spawn(all_rounds).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[inline(never)]
fn all_rounds() -> Result<()> {
    for _ in 0..ROUNDS {
        round()?;
    }
    Ok(())
}

fn round() -> Result<()> {
    let mut database = Connection::open_in_memory()?;
    fill(&mut database)?;
    index(&database)?;
    best_customers(&database)?;
    search(&database)
}

#[inline(never)]
fn fill(database: &mut Connection) -> Result<()> {
    database.execute_batch(
        "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, note TEXT, cents INTEGER);",
    )?;
    let transaction = database.transaction()?;
    {
        let mut customer = transaction.prepare("INSERT INTO customers VALUES (?, ?)")?;
        for id in 0..CUSTOMERS {
            customer.execute((id, format!("customer {id}")))?;
        }
        let mut order = transaction.prepare("INSERT INTO orders VALUES (?, ?, ?, ?)")?;
        let mut random = 1_u32;
        for id in 0..ORDERS {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let note = format!("order {id} of item {} in a hurry", random >> 20);
            order.execute((id, (random >> 8) % CUSTOMERS, note, random % 100_000))?;
        }
    }
    transaction.commit()
}

#[inline(never)]
fn index(database: &Connection) -> Result<()> {
    database.execute_batch("CREATE INDEX by_note ON orders (note); ANALYZE;")
}

#[inline(never)]
fn best_customers(database: &Connection) -> Result<()> {
    let mut query = database.prepare(
        "SELECT name, count(*), sum(cents) AS total FROM orders JOIN customers ON customers.id = orders.customer
         GROUP BY name ORDER BY total DESC LIMIT 10",
    )?;
    let names = query.query_map([], |row| row.get::<_, String>(0))?;
    names.collect::<Result<Vec<String>>>().map(drop)
}

#[inline(never)]
fn search(database: &Connection) -> Result<()> {
    let mut query = database.prepare(
        "SELECT count(*) FROM orders WHERE note LIKE '%item 7%hurry' OR upper(note) LIKE '%9 IN%'",
    )?;
    query.query_row([], |row| row.get::<_, u32>(0)).map(drop)
}

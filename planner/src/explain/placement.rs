//! Where replicas and stages lie, a row a host: `A0` is stage 0 of replica A, `-` an idle GPU.
//!
//! ```text
//!   ib    ib-0 .. ib-7 (8)   A0 A0 A1 A1 B0 B0 B1 B1
//!   roce  roce-0             A2 A2 B2 B2 -  -  -  -
//! ```
//! Neighbouring hosts that look alike but for the names of their replicas share a row, that of the first of them.
//! Names are A to Z, then AA, AB, and so on.

use std::collections::HashMap;

use super::text::Style;
use crate::plan::Plan;

/// What a host's GPUs hold: (replica, stages) or nothing.
pub(super) type Cells = Vec<Option<(usize, usize)>>;

/// Like hosts of a cluster.
pub(super) struct Row<'a> {
    /// Index of the cluster.
    pub cluster: usize,
    /// Names of the first and the last.
    pub hosts: [&'a str; 2],
    /// How many.
    pub count: usize,
    /// The first's GPUs.
    pub cells: Cells,
}

/// More rows than this are not shown.
const ROWS_MAX: usize = 24;

/// All hosts of the inventory, like neighbours together.
pub(super) fn rows(plan: &Plan) -> Vec<Row<'_>> {
    let mut held: HashMap<(&str, u32), (usize, usize)> = HashMap::new();
    for seat in plan.seats() {
        held.insert((&seat.placement.host, seat.placement.gpu), (seat.replica, seat.stage));
    }
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (cluster, fabric) in plan.cluster.clusters.iter().enumerate() {
        for host in &fabric.hosts {
            let cells: Cells =
                (0..fabric.gpus).map(|gpu| held.get(&(host.name.as_str(), gpu)).copied()).collect();
            match rows.last_mut().filter(|row| row.cluster == cluster && alike(&row.cells) == alike(&cells)) {
                Some(row) => (row.hosts[1], row.count) = (&host.name, row.count + 1),
                None => rows.push(Row { cluster, hosts: [&host.name; 2], count: 1, cells }),
            }
        }
    }
    rows
}

/// Replicas numbered as they come.
fn alike(cells: &Cells) -> Cells {
    let mut seen: Vec<usize> = Vec::new();
    let mut number = |replica: usize| {
        seen.iter().position(|r| *r == replica).unwrap_or_else(|| {
            seen.push(replica);
            seen.len() - 1
        })
    };
    cells.iter().map(|cell| cell.map(|(replica, stage)| (number(replica), stage))).collect()
}

/// A, B, .. Z, AA, AB, ..
pub(super) fn letters(mut replica: usize) -> String {
    let mut name = Vec::new();
    loop {
        name.push(b'A' + (replica % 26) as u8);
        if replica < 26 {
            break;
        }
        replica = replica / 26 - 1;
    }
    name.reverse();
    name.into_iter().map(char::from).collect()
}

/// The rows as text.
pub(super) fn draw(plan: &Plan, style: Style) -> String {
    let rows = rows(plan);
    let head = |row: &Row<'_>| match row.count {
        1 => row.hosts[0].to_owned(),
        n => format!("{} .. {} ({n})", row.hosts[0], row.hosts[1]),
    };
    let shown = &rows[..rows.len().min(ROWS_MAX)];
    let wide = shown.iter().map(|row| head(row).chars().count()).max().unwrap_or(0);
    let name = |cell: &Option<(usize, usize)>| match cell {
        Some((replica, stage)) => format!("{}{stage}", letters(*replica)),
        None => "-".to_owned(),
    };
    let cell_wide = shown.iter().flat_map(|r| &r.cells).map(|c| name(c).len()).max().unwrap_or(1);
    let fit = (style.columns.saturating_sub(wide + 6) / (cell_wide + 1)).max(1);
    let mut text = String::new();
    for row in shown {
        text += &format!("  {:<wide$}  ", head(row));
        for cell in row.cells.iter().take(fit) {
            let padded = format!("{:<cell_wide$}", name(cell));
            text += &style.paint(cell.map(|c| c.0), &padded);
            text.push(' ');
        }
        if row.cells.len() > fit {
            text += &format!("+{}", row.cells.len() - fit);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    if rows.len() > ROWS_MAX {
        let hosts: usize = rows[ROWS_MAX..].iter().map(|r| r.count).sum();
        text += &format!("  and {hosts} hosts more\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_named_like_columns_of_a_sheet() {
        let names = [0, 25, 26, 27, 701, 702].map(letters);
        assert_eq!(names, ["A", "Z", "AA", "AB", "ZZ", "AAA"]);
    }

    #[test]
    fn hosts_are_alike_but_for_the_names_of_replicas() {
        let host = |replicas: [usize; 3]| -> Cells { replicas.iter().map(|r| Some((*r, 0))).collect() };
        assert_eq!(alike(&host([4, 4, 7])), alike(&host([1, 1, 0])));
        assert_ne!(alike(&host([4, 7, 7])), alike(&host([1, 1, 0])));
    }
}

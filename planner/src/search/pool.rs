//! Which columns there are: all of a scope where they can be listed, the promising ones where they cannot.
//!
//! ```text
//!   one cluster      every tensor-parallel degree, number of stages, virtual stages: always listed
//!   several          every order, degrees, stage counts and cuts of the layers, while they are few;
//!                    else pairs of clusters cut in proportion to their speeds, and chains of as many as memory needs
//! ```
//! A guided pool makes plans; it proves nothing. What its omissions could be worth is bounded in `bound`.
//!
//! Not here: which columns are chosen (`market`, `master`).

use std::collections::HashMap;

use super::Scope;
use super::column::{Outline, Run, Signature};
use super::space::Space;

/// Columns of one problem.
pub(crate) struct Pool {
    pub columns: Vec<Column>,
    pub signatures: Vec<Signature>,
    /// The fewest GPUs of each group that a replica of a signature needs.
    pub fewest: Vec<Vec<u32>>,
    /// Every column of the scope is there.
    pub complete: bool,
    /// How many memory tables a mode has.
    tables: usize,
    /// Columns of several clusters: by mode and (cluster, degree, stages, layers) of each run.
    known: HashMap<(usize, Shape), usize>,
    signature_index: HashMap<Signature, usize>,
}

/// (cluster, index of the degree, stages, layers) of each run.
type Shape = Vec<(usize, usize, u32, u32)>;

fn shape(runs: &[Run]) -> Shape {
    runs.iter().map(|r| (r.group, r.team_index, r.stages, r.layers)).collect()
}

/// A pipeline under a microbatch size and a kind of recomputation.
pub(crate) struct Column {
    /// Index of its space.
    pub mode: usize,
    /// Index into [`Pool::signatures`].
    pub signature: usize,
    pub outline: Outline,
}

/// More columns than this are not listed.
const MOST_COLUMNS: usize = 8_000;

impl Pool {
    /// The columns of a scope; `tables`: how many memory tables a mode has.
    pub fn new(modes: &[Space], scope: &Scope, tables: usize) -> Self {
        let orders = orders(&modes[0], &scope.clusters);
        let mut count = 0;
        let mut fits = |_: &[Run], _: u32| {
            count += modes.len();
            count <= MOST_COLUMNS
        };
        let complete = orders.iter().all(|order| walk(&modes[0], order, &mut fits));
        let mut pool = Self {
            columns: vec![],
            signatures: vec![],
            fewest: vec![],
            complete,
            tables,
            known: HashMap::new(),
            signature_index: HashMap::new(),
        };
        if complete {
            for order in &orders {
                pool.add_all(modes, order);
            }
        } else {
            for &cluster in &scope.clusters {
                pool.add_all(modes, &[cluster]);
            }
        }
        pool
    }

    fn add_all(&mut self, modes: &[Space], order: &[usize]) {
        for (mode, space) in modes.iter().enumerate() {
            walk(space, order, &mut |runs, chunks| {
                self.add(modes, mode, runs.to_vec(), chunks);
                true
            });
        }
    }

    /// The column of several clusters with these runs, if it is there.
    pub fn known(&self, mode: usize, runs: &[Run]) -> Option<usize> {
        self.known.get(&(mode, shape(runs))).copied()
    }

    /// Adds a column.
    pub fn add(&mut self, modes: &[Space], mode: usize, runs: Vec<Run>, chunks: u32) {
        if runs.len() > 1 {
            self.known.insert((mode, shape(&runs)), self.columns.len());
        }
        let outline = Outline::new(&modes[mode], runs, chunks, self.tables);
        let signature = outline.signature();
        let known = self.signature_index.get(&signature).copied();
        let signature = known.unwrap_or_else(|| {
            self.signature_index.insert(signature.clone(), self.signatures.len());
            self.signatures.push(signature);
            self.fewest.push(outline.devices.clone());
            self.signatures.len() - 1
        });
        let fewest = self.fewest[signature].iter_mut().zip(&outline.devices);
        fewest.for_each(|(fewest, used)| *fewest = (*fewest).min(*used));
        self.columns.push(Column { mode, signature, outline });
    }
}

/// Orders of subsets of `groups` in which neighbours are joined.
pub(crate) fn orders(space: &Space, groups: &[usize]) -> Vec<Vec<usize>> {
    let mut orders: Vec<Vec<usize>> = groups.iter().map(|&g| vec![g]).collect();
    let mut from = 0;
    // Far more than can be listed are not needed.
    while from < orders.len() && orders.len() < 10_000 {
        let order = orders[from].clone();
        let last = *order.last().expect("orders are not empty");
        let next = groups.iter().filter(|g| !order.contains(g) && space.link(last, **g).is_some());
        orders.extend(next.map(|&g| [order.clone(), vec![g]].concat()));
        from += 1;
    }
    orders
}

/// Hands every list of runs over an order, with its virtual stages, to `take`, in a fixed order, until it says stop;
/// true if it never did.
pub(crate) fn walk(space: &Space, order: &[usize], take: &mut dyn FnMut(&[Run], u32) -> bool) -> bool {
    stages(space, order, &mut Vec::new(), take)
}

fn stages(
    space: &Space,
    order: &[usize],
    runs: &mut Vec<Run>,
    take: &mut dyn FnMut(&[Run], u32) -> bool,
) -> bool {
    let depth = runs.len();
    if depth == order.len() {
        return layers(runs, 0, space.model.layers, &mut |runs| virtual_stages(space, runs, take));
    }
    let group = &space.groups[order[depth]];
    let used: u32 = runs.iter().map(|r| r.stages).sum();
    let left = space.model.layers.saturating_sub(used + (order.len() - depth - 1) as u32);
    for (team_index, &team) in group.teams.iter().enumerate() {
        for stages_here in 1..=(group.gpus / team.size).min(left) {
            runs.push(Run { group: order[depth], team, team_index, stages: stages_here, layers: 0 });
            let go_on = stages(space, order, runs, take);
            runs.pop();
            if !go_on {
                return false;
            }
        }
    }
    true
}

/// Layers of every run: all compositions with at least one a stage.
fn layers(runs: &mut [Run], depth: usize, left: u32, take: &mut dyn FnMut(&[Run]) -> bool) -> bool {
    let rest: u32 = runs[depth + 1..].iter().map(|r| r.stages).sum();
    if depth + 1 == runs.len() {
        runs[depth].layers = left;
        return left < runs[depth].stages || take(runs);
    }
    for layers_here in runs[depth].stages..=left.saturating_sub(rest) {
        runs[depth].layers = layers_here;
        if !layers(runs, depth + 1, left - layers_here, take) {
            return false;
        }
    }
    true
}

/// A pipeline inside one cluster may interleave, in powers of two.
fn virtual_stages(space: &Space, runs: &[Run], take: &mut dyn FnMut(&[Run], u32) -> bool) -> bool {
    let most = match runs {
        [run] if run.stages > 1 => space.limits.max_virtual_stages.min(run.layers / run.stages),
        _ => 1,
    };
    (0..).map(|i| 1 << i).take_while(|v| *v <= most.max(1)).all(|v| take(runs, v))
}

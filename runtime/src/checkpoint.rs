//! Checkpoints: a folder a step, a safetensors file a rank, a manifest with checksums; whole or not there at all.
//!
//! ```text
//!   checkpoints/step-00000120.partial/rank-0.safetensors …   each written, synced, hashed by its rank
//!                                    /manifest.json          written by the coordinator when every rank has reported
//!   checkpoints/step-00000120/                               the rename that makes it count
//! ```
//! A reader trusts nothing: the manifest must parse, name this plan's ranks, and every byte of the rank's file must
//! hash to what the manifest says (BLAKE3) before a tensor is looked at. What a crash leaves behind is a `.partial`
//! folder, swept at the next start.
//!
//! Not here: what is saved (`worker`), when (`train`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use narrows_planner::durable;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

/// Format of the manifest.
pub const VERSION: u32 = 1;

/// A named f32 tensor.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Name, unique in the file.
    pub name: &'a str,
    /// Shape; its product is the length of `values`.
    pub shape: &'a [usize],
    /// Row-major values.
    pub values: &'a [f32],
}

/// What the coordinator notes of a rank's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Rank that wrote it.
    pub rank: u32,
    /// File name inside the checkpoint's folder.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its bytes, hexadecimal.
    pub blake3: String,
}

/// What makes a folder a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Fingerprint of the plan and settings that the states belong to.
    pub fingerprint: String,
    /// One a rank.
    pub shards: Vec<Shard>,
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk said no.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are not those that were written.
    #[error(
        "{}: the checkpoint is damaged: {what}; expected {expected}, got {got}\n  hint: delete its folder to resume \
         from the checkpoint before it", path.display()
    )]
    Damaged {
        /// File.
        path: PathBuf,
        /// Which property.
        what: &'static str,
        /// As written.
        expected: String,
        /// As found.
        got: String,
    },
    /// The checkpoint belongs to another plan or other settings.
    #[error(
        "{}: the checkpoint was made by another plan or other settings ({got}, this run is {expected})\n  hint: resume \
         with the plan and run file of that run, or start afresh in another [run] out folder", path.display()
    )]
    Foreign {
        /// Manifest.
        path: PathBuf,
        /// This run's fingerprint.
        expected: String,
        /// The checkpoint's.
        got: String,
    },
}

/// The folder that holds a run's checkpoints.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The checkpoints of the run in `run_folder`.
    pub fn of_run(run_folder: &Path) -> Self {
        Self { folder: run_folder.join("checkpoints") }
    }

    /// Writes a rank's file into the step's partial folder; durable when this returns.
    pub fn write_shard(
        &self,
        step: u64,
        rank: u32,
        tensors: &[Tensor<'_>],
    ) -> Result<Shard, CheckpointError> {
        let folder = self.partial(step);
        fs::create_dir_all(&folder).map_err(io(&folder, "creating the folder"))?;
        let file = format!("rank-{rank}.safetensors");
        let path = folder.join(&file);
        let views = tensors.iter().map(|t| {
            let bytes = bytemuck::cast_slice(t.values);
            (t.name, TensorView::new(Dtype::F32, t.shape.to_vec(), bytes).expect("shape matches values"))
        });
        let bytes = safetensors::serialize(views, None).expect("names are unique, shapes match");
        durable::write(&path, &bytes).map_err(io(&path, "writing"))?;
        Ok(Shard { rank, file, bytes: bytes.len() as u64, blake3: blake3::hash(&bytes).to_hex().to_string() })
    }

    /// Makes the step's partial folder a checkpoint, then deletes all but the newest `keep`.
    pub fn commit(&self, manifest: &Manifest, keep: usize) -> Result<PathBuf, CheckpointError> {
        let (partial, whole) = (self.partial(manifest.step), self.whole(manifest.step));
        let json = serde_json::to_vec_pretty(manifest).expect("a manifest is plain data");
        let path = partial.join("manifest.json");
        durable::write(&path, &json).map_err(io(&path, "writing"))?;
        if whole.exists() {
            fs::remove_dir_all(&whole)
                .map_err(io(&whole, "removing the older checkpoint of the same step"))?;
        }
        fs::rename(&partial, &whole).map_err(io(&partial, "renaming the finished checkpoint"))?;
        sync_folder(&self.folder)?;
        let steps = self.steps();
        for &step in &steps[..steps.len().saturating_sub(keep)] {
            let old = self.whole(step);
            fs::remove_dir_all(&old).map_err(io(&old, "removing an old checkpoint"))?;
        }
        Ok(whole)
    }

    /// Steps that have a whole checkpoint, ascending.
    pub fn steps(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut steps: Vec<u64> = entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    /// Deletes what an interrupted run left half-written.
    pub fn sweep(&self) -> Result<(), CheckpointError> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(()) };
        for path in entries.flatten().map(|e| e.path()) {
            if path.extension().is_some_and(|e| e == "partial") {
                fs::remove_dir_all(&path).map_err(io(&path, "removing a half-written checkpoint"))?;
            }
        }
        Ok(())
    }

    /// The step's manifest, checked against this run.
    pub fn manifest(
        &self,
        step: u64,
        fingerprint: &str,
        world_size: u32,
    ) -> Result<Manifest, CheckpointError> {
        let path = self.whole(step).join("manifest.json");
        let bytes = fs::read(&path).map_err(io(&path, "reading"))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| CheckpointError::Damaged {
            path: path.clone(),
            what: "the manifest does not parse",
            expected: "a manifest of version 1".into(),
            got: e.to_string(),
        })?;
        if manifest.fingerprint != fingerprint || manifest.shards.len() != world_size as usize {
            let got = manifest.fingerprint;
            return Err(CheckpointError::Foreign { path, expected: fingerprint.into(), got });
        }
        Ok(manifest)
    }

    /// Checks every rank's file against the manifest without loading any.
    pub fn verify(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        manifest.shards.iter().try_for_each(|shard| self.verified_bytes(manifest.step, shard).map(drop))
    }

    /// A rank's file, verified.
    pub fn read_shard(&self, manifest: &Manifest, rank: u32) -> Result<Loaded, CheckpointError> {
        let path = self.whole(manifest.step).join("manifest.json");
        let shard =
            manifest.shards.iter().find(|s| s.rank == rank).ok_or_else(|| CheckpointError::Damaged {
                path,
                what: "a rank is missing",
                expected: format!("rank {rank}"),
                got: format!("{} other ranks", manifest.shards.len()),
            })?;
        let bytes = self.verified_bytes(manifest.step, shard)?;
        Ok(Loaded { path: self.whole(manifest.step).join(&shard.file), bytes })
    }

    fn verified_bytes(&self, step: u64, shard: &Shard) -> Result<Vec<u8>, CheckpointError> {
        let path = self.whole(step).join(&shard.file);
        let bytes = fs::read(&path).map_err(io(&path, "reading"))?;
        let damaged =
            |what, expected, got| CheckpointError::Damaged { path: path.clone(), what, expected, got };
        if bytes.len() as u64 != shard.bytes {
            let (expected, got) = (format!("{} bytes", shard.bytes), format!("{} bytes", bytes.len()));
            return Err(damaged("its length changed", expected, got));
        }
        let hash = blake3::hash(&bytes).to_hex().to_string();
        if hash != shard.blake3 {
            return Err(damaged("its checksum (BLAKE3) differs", shard.blake3.clone(), hash));
        }
        Ok(bytes)
    }

    fn partial(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}.partial"))
    }

    fn whole(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }
}

/// A rank's verified file.
pub struct Loaded {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Loaded {
    /// The error for a tensor whose values cannot be used.
    pub fn unusable(&self, name: &str, why: &dyn std::fmt::Display) -> CheckpointError {
        let (expected, got) = (format!("usable values in {name:?}"), why.to_string());
        CheckpointError::Damaged { path: self.path.clone(), what: "its values cannot be used", expected, got }
    }

    /// Copies tensor `name` into `into`, whose length it must have.
    pub fn copy(&self, name: &str, into: &mut [f32]) -> Result<(), CheckpointError> {
        let damaged = |what, expected: String, got: String| CheckpointError::Damaged {
            path: self.path.clone(),
            what,
            expected,
            got,
        };
        let file = SafeTensors::deserialize(&self.bytes).map_err(|e| {
            damaged("it is no safetensors file", "a safetensors header".into(), e.to_string())
        })?;
        let tensor = file
            .tensor(name)
            .map_err(|e| damaged("a tensor is missing", format!("tensor {name:?}"), e.to_string()))?;
        let wanted = std::mem::size_of_val(into);
        if tensor.dtype() != Dtype::F32 || tensor.data().len() != wanted {
            let got = format!("{:?} of {} bytes", tensor.dtype(), tensor.data().len());
            return Err(damaged(
                "a tensor has another size",
                format!("{name:?}: F32 of {wanted} bytes"),
                got,
            ));
        }
        bytemuck::cast_slice_mut(into).copy_from_slice(tensor.data());
        Ok(())
    }
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder, "syncing the folder"))
}

fn io<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(std::io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::of_run(folder.path());
        (folder, store)
    }

    fn save(store: &Store, step: u64) -> Manifest {
        let values = [1.0f32, -2.5, step as f32];
        let shard =
            store.write_shard(step, 0, &[Tensor { name: "w", shape: &[3], values: &values }]).unwrap();
        let manifest = Manifest { version: VERSION, step, fingerprint: "f".into(), shards: vec![shard] };
        store.commit(&manifest, 2).unwrap();
        manifest
    }

    #[test]
    fn what_was_saved_is_read_back_bit_for_bit() {
        let (_folder, store) = store();
        save(&store, 5);
        let manifest = store.manifest(5, "f", 1).unwrap();
        let mut values = [0.0; 3];
        store.read_shard(&manifest, 0).unwrap().copy("w", &mut values).unwrap();
        assert_eq!(values, [1.0, -2.5, 5.0]);
    }

    #[test]
    fn any_flipped_bit_is_found_and_the_file_named() {
        let (folder, store) = store();
        let manifest = save(&store, 5);
        let path = folder.path().join("checkpoints/step-00000005/rank-0.safetensors");
        let good = fs::read(&path).unwrap();
        for bit in (0..good.len() * 8).step_by(37) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            let error = store.verify(&manifest).unwrap_err().to_string();
            assert!(error.contains("rank-0.safetensors") && error.contains("checksum"), "bit {bit}: {error}");
        }
    }

    #[test]
    fn a_truncated_file_and_a_foreign_plan_are_refused() {
        let (folder, store) = store();
        let manifest = save(&store, 5);
        assert!(matches!(store.manifest(5, "other", 1), Err(CheckpointError::Foreign { .. })));
        assert!(matches!(store.manifest(5, "f", 2), Err(CheckpointError::Foreign { .. })));
        let path = folder.path().join("checkpoints/step-00000005/rank-0.safetensors");
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(store.verify(&manifest).unwrap_err().to_string().contains("length"));
    }

    #[test]
    fn only_whole_checkpoints_count_and_old_ones_go() {
        let (folder, store) = store();
        for step in [5, 10, 15] {
            save(&store, step);
        }
        let w = [0.0];
        store.write_shard(20, 0, &[Tensor { name: "w", shape: &[1], values: &w }]).unwrap();
        assert_eq!(store.steps(), [10, 15], "two kept; the partial one does not count");
        store.sweep().unwrap();
        let left = fs::read_dir(folder.path().join("checkpoints")).unwrap().count();
        assert_eq!(left, 2);
    }
}

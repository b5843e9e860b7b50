//! Collectives over real sockets: each rank a thread with its own mesh.

use narrows_transport::collective::{CollectiveError, all_gather_frames, all_reduce_direct, barrier};
use narrows_transport::{Cause, JobKey, Mesh, MeshConfig, Tag};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Runs `body` on each rank of a full mesh; what it returns, by rank.
fn on_each<T: Send>(world: u32, body: impl Fn(&Mesh, &[u32]) -> T + Sync) -> Vec<T> {
    let builders: Vec<_> = (0..world)
        .map(|rank| {
            let config = MeshConfig::new(rank, world, JobKey::new([3; 32]), "127.0.0.1:0".parse().unwrap());
            Mesh::bind(config).unwrap()
        })
        .collect();
    let peers: Vec<(u32, SocketAddr)> =
        (0..world).zip(builders.iter().map(|builder| builder.address())).collect();
    let group: Vec<u32> = (0..world).collect();
    let (peers, group, body) = (&peers, &group, &body);
    thread::scope(|scope| {
        let ranks: Vec<_> = builders
            .into_iter()
            .map(|builder| {
                scope.spawn(move || {
                    let mesh = builder.connect(peers, far()).unwrap();
                    let result = body(&mesh, group);
                    let _ = mesh.close(far());
                    result
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Values whose sum depends on the order of addition.
fn values(rank: u32, length: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 2_654_435_761 + rank as usize * 40_503) % 1_000_003) as f32 * 1e-3 - 500.0;
    (0..length).map(value).collect()
}

#[test]
fn all_gather_keeps_order_and_unequal_lengths() {
    for world in [1, 2, 3, 5] {
        let frame = |rank: u32| vec![rank as u8; rank as usize * 100_000];
        let gathered = on_each(world, |mesh, group| {
            all_gather_frames(mesh, group, Tag(1), &frame(mesh.rank()), far()).unwrap()
        });
        let expected: Vec<_> = (0..world).map(frame).collect();
        assert!(gathered.iter().all(|frames| *frames == expected));
    }
}

#[test]
fn all_reduce_gives_every_member_the_sum_in_group_order_to_the_bit() {
    for (world, length) in [(1, 10), (2, 1_000), (3, 100_003), (4, 3), (3, 0)] {
        let reduced = on_each(world, |mesh, group| {
            let mut data = values(mesh.rank(), length);
            all_reduce_direct(mesh, group, Tag(9), &mut data, far()).unwrap();
            data
        });
        let mut expected = values(0, length);
        for rank in 1..world {
            expected.iter_mut().zip(values(rank, length)).for_each(|(sum, value)| *sum += value);
        }
        let bits = |data: &[f32]| data.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(reduced.iter().all(|data| bits(data) == bits(&expected)), "{world} ranks, {length} values");
    }
}

#[test]
fn collectives_run_concurrently_under_distinct_tags_and_in_turn_under_one() {
    let sums = on_each(3, |mesh, group| {
        let reduce = |tag: u64, value: f32| {
            let mut data = vec![value; 50_000];
            all_reduce_direct(mesh, group, Tag(tag), &mut data, far()).unwrap();
            data[49_999]
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| (0..5).map(|i| reduce(1, i as f32)).sum::<f32>());
            (0..5).map(|i| reduce(2, 10.0 * i as f32)).sum::<f32>() + other.join().unwrap()
        })
    });
    assert_eq!(sums, [330.0; 3]);
}

#[test]
fn a_barrier_lets_nobody_through_before_all_are_there() {
    let arrived = AtomicU32::new(0);
    on_each(4, |mesh, group| {
        for round in 1..=20 {
            arrived.fetch_add(1, SeqCst);
            barrier(mesh, group, Tag(5), far()).unwrap();
            assert!(arrived.load(SeqCst) >= round * 4, "round {round}");
            barrier(mesh, group, Tag(5), far()).unwrap();
        }
    });
}

#[test]
fn a_member_that_fails_leaves_the_data_of_the_others_intact() {
    let errors = on_each(3, |mesh, group| {
        if mesh.rank() == 2 {
            mesh.abort("the disk is full");
            return None;
        }
        let mut data = values(mesh.rank(), 1_000);
        let error = all_reduce_direct(mesh, group, Tag(1), &mut data, far()).unwrap_err();
        assert_eq!(data, values(mesh.rank(), 1_000));
        // As the module says: who fails makes the others fail.
        mesh.abort("a collective failed");
        Some(error)
    });
    for error in errors.into_iter().flatten() {
        let CollectiveError::Link(error) = error else { panic!("{error}") };
        assert!(matches!(error.cause, Cause::PeerAborted { .. } | Cause::Lost(_)), "{error}");
    }
}

#[test]
fn unlike_lengths_and_strangers_are_named() {
    let errors = on_each(2, |mesh, group| {
        let mut data = vec![0.0; 10 + mesh.rank() as usize * 10];
        let unlike = all_reduce_direct(mesh, group, Tag(1), &mut data, far()).unwrap_err().to_string();
        let stranger = barrier(mesh, &[7, 8], Tag(2), far()).unwrap_err().to_string();
        (unlike, stranger)
    });
    assert!(errors[0].0.contains("rank 1 sent 40 B for a shard, expected 20 B"), "{}", errors[0].0);
    assert!(errors[1].1.contains("rank 1 called a collective of [7, 8]"), "{}", errors[1].1);
}

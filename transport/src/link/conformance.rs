//! What every kind of link must do, over real sockets on loopback. A new kind runs the same bodies: they see a mesh.

use super::{Cause, Operation, Tag};
use crate::clock::monotonic_ns;
use crate::mesh::{JobKey, Mesh, MeshConfig, MeshError};
use crate::shape::{ResourceSpec, RouteSpec, Shape, ShapeSpec};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Far enough away that a test which reaches it has failed.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(50)
}

fn config(rank: u32, world: u32) -> MeshConfig {
    MeshConfig::new(rank, world, JobKey::new([7; 32]), "127.0.0.1:0".parse().unwrap())
}

/// A full mesh in this process.
fn meshes(world: u32, tune: impl Fn(&mut MeshConfig)) -> Vec<Mesh> {
    let builders: Vec<_> = (0..world)
        .map(|rank| {
            let mut config = config(rank, world);
            tune(&mut config);
            Mesh::bind(config).unwrap()
        })
        .collect();
    let peers: Vec<(u32, SocketAddr)> =
        (0..world).zip(builders.iter().map(|builder| builder.address())).collect();
    thread::scope(|scope| {
        let connecting: Vec<_> =
            builders.into_iter().map(|b| scope.spawn(|| b.connect(&peers, far()).unwrap())).collect();
        connecting.into_iter().map(|mesh| mesh.join().unwrap()).collect()
    })
}

fn pair(tune: impl Fn(&mut MeshConfig)) -> (Mesh, Mesh) {
    let mut both = meshes(2, tune).into_iter();
    (both.next().unwrap(), both.next().unwrap())
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

fn take(mesh: &Mesh, from: u32, tag: Tag) -> Vec<u8> {
    let mut message = Vec::new();
    mesh.recv(from, tag, &mut message, far()).unwrap();
    message
}

fn close_all(meshes: &[Mesh]) {
    thread::scope(|scope| meshes.iter().for_each(|mesh| drop(scope.spawn(|| mesh.close(far()).unwrap()))));
}

#[test]
fn every_length_crosses_both_ways_at_once() {
    let both = meshes(2, |_| {});
    let lengths = [0, 1, 55, 56, 57, 4_096, 65_535, 262_144, 262_145, 1 << 20, 16 << 20];
    thread::scope(|scope| {
        for mesh in &both {
            scope.spawn(move || {
                let (me, peer) = (mesh.rank() as u8, 1 - mesh.rank());
                for (i, &length) in lengths.iter().enumerate() {
                    mesh.send(peer, Tag(i as u64), pattern(length, me)).unwrap();
                }
                for (i, &length) in lengths.iter().enumerate() {
                    assert!(take(mesh, peer, Tag(i as u64)) == pattern(length, 1 - me), "{length} B");
                }
            });
        }
    });
    close_all(&both);
}

#[test]
fn order_holds_per_tag_and_tags_may_be_taken_in_any_order() {
    let (a, b) = pair(|_| {});
    for i in 0..1_000u64 {
        a.send(1, Tag(i % 10), i.to_le_bytes().to_vec()).unwrap();
    }
    for tag in (0..10).rev() {
        for round in 0..100u64 {
            assert_eq!(take(&b, 0, Tag(tag)), (round * 10 + tag).to_le_bytes());
        }
    }
}

#[test]
fn a_receiver_that_does_not_take_stops_the_sender_within_bounded_memory() {
    let window_bytes = 256 * 1024;
    let (a, b) = pair(|config| {
        config.window_bytes = window_bytes;
        config.send_timeout = Duration::from_millis(100);
    });
    let mut accepted = 0u64;
    let error = loop {
        match a.send(1, Tag(0x5), vec![0; 10_000]) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted * 10_000 <= 2 * window_bytes, "the sender was not stopped");
    };
    assert!(b.held_bytes(0) <= window_bytes);
    assert_eq!((error.rank, error.peer, error.operation, error.tag), (0, 1, Operation::Send, Some(Tag(5))));
    assert!(matches!(error.cause, Cause::Deadline { .. }), "{error}");
    // Other tags are not blocked by the full window, once there is room to hand them over.
    assert_eq!(take(&b, 0, Tag(5)).len(), 10_000);
    a.send(1, Tag(6), vec![6]).unwrap();
    assert_eq!(take(&b, 0, Tag(6)), [6]);
    (1..accepted).for_each(|_| drop(take(&b, 0, Tag(5))));
}

#[test]
fn counters_hold_every_byte_of_the_socket() {
    let both = meshes(2, |_| {});
    both[0].send(1, Tag(1), vec![1; 1_000_000]).unwrap();
    both[1].send(0, Tag(1), vec![1; 3]).unwrap();
    take(&both[1], 0, Tag(1));
    take(&both[0], 1, Tag(1));
    close_all(&both);
    let (a, b) = (both[0].counters()[0], both[1].counters()[0]);
    assert_eq!((a.peer, a.sent_payload_bytes, a.received_payload_bytes), (1, 1_000_000, 3));
    // 4 chunks of at most 256 KiB and a goodbye, after an 88-byte hello.
    assert_eq!(a.sent_wire_bytes, 88 + 1_000_000 + 5 * 56);
    assert_eq!((a.sent_wire_bytes, a.received_wire_bytes), (b.received_wire_bytes, b.sent_wire_bytes));
    assert_eq!(
        (a.sent_payload_bytes, a.received_payload_bytes),
        (b.received_payload_bytes, b.sent_payload_bytes)
    );
}

#[test]
fn a_deadline_names_peer_tag_step_and_what_was_there() {
    let (a, b) = pair(|_| {});
    a.set_step(41);
    b.send(0, Tag(0x10), vec![1]).unwrap();
    take(&a, 1, Tag(0x10));
    let mut into = vec![9];
    let error = a.recv(1, Tag(0x2a), &mut into, soon()).unwrap_err();
    assert_eq!(
        (error.peer, error.tag, error.step, error.operation),
        (1, Some(Tag(0x2a)), 41, Operation::Receive)
    );
    let said = error.to_string();
    assert!(
        said.starts_with("rank 0, step 41: receiving from rank 1, tag 0x2a: not done after 0.05"),
        "{said}"
    );
    assert!(said.ends_with("nothing has arrived"), "{said}");
    assert_eq!(into, [9], "the caller's buffer is untouched");
}

#[test]
fn a_buffer_passed_again_is_landed_in_again() {
    let (a, b) = pair(|_| {});
    let mut into = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for round in 0..10 {
        a.send(1, Tag(round), vec![0; 1 << 20]).unwrap();
        b.recv(0, Tag(round), &mut into, far()).unwrap();
        seen.insert(into.as_ptr());
    }
    assert!(seen.len() <= 3, "{} buffers for ten messages", seen.len());
}

#[test]
fn a_peer_that_dies_mid_message_fails_every_wait_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // 1 MB at 1 MB/s: it is certainly under way when its sender goes.
    let (a, b) = pair(|config| config.shape = Some(one_way(dir.path(), 1e6, 0.0)));
    let waits = thread::scope(|scope| {
        let waits = [Tag(1), Tag(2)].map(|tag| {
            scope.spawn({
                let b = &b;
                move || b.recv(0, tag, &mut Vec::new(), far()).unwrap_err()
            })
        });
        a.send(1, Tag(1), vec![0; 1_000_000]).unwrap();
        while b.counters()[0].received_payload_bytes == 0 {
            thread::yield_now();
        }
        drop(a);
        waits.map(|wait| wait.join().unwrap())
    });
    for error in waits {
        assert_eq!(error.peer, 0);
        assert!(matches!(error.cause, Cause::Lost(_)), "{error}");
    }
    assert!(matches!(b.send(0, Tag(1), vec![1]).unwrap_err().cause, Cause::Lost(_)));
}

#[test]
fn what_arrived_whole_outlives_its_sender() {
    let (a, b) = pair(|_| {});
    a.send(1, Tag(1), vec![5; 10]).unwrap();
    a.flush(far()).unwrap();
    drop(a);
    assert!(matches!(b.recv(0, Tag(2), &mut Vec::new(), far()).unwrap_err().cause, Cause::Lost(_)));
    assert_eq!(take(&b, 0, Tag(1)), [5; 10]);
}

#[test]
fn an_abort_wakes_everyone_here_and_there() {
    let all = meshes(3, |_| {});
    let errors = thread::scope(|scope| {
        let waits: Vec<_> = [(0, 2), (0, 1), (1, 0), (2, 0)]
            .map(|(rank, from): (usize, u32)| {
                let mesh = &all[rank];
                scope.spawn(move || mesh.recv(from, Tag(3), &mut Vec::new(), far()).unwrap_err())
            })
            .into_iter()
            .collect();
        all[0].abort("the loss is not finite");
        waits.into_iter().map(|wait| wait.join().unwrap()).collect::<Vec<_>>()
    });
    for error in &errors {
        let own = error.rank == 0;
        assert!(
            if own {
                matches!(error.cause, Cause::Aborted { .. })
            } else {
                matches!(error.cause, Cause::PeerAborted { .. })
            },
            "{error}"
        );
        assert!(error.to_string().ends_with("aborted: the loss is not finite"), "{error}");
    }
    assert!(matches!(all[0].send(1, Tag(0), vec![]).unwrap_err().cause, Cause::Aborted { .. }));
}

#[test]
fn a_closed_peer_is_no_lost_peer() {
    let (a, b) = pair(|_| {});
    a.send(1, Tag(1), vec![1; 100_000]).unwrap();
    thread::scope(|scope| {
        let closing = scope.spawn(|| a.close(far()));
        assert!(matches!(b.recv(0, Tag(2), &mut Vec::new(), far()).unwrap_err().cause, Cause::Closed));
        assert_eq!(take(&b, 0, Tag(1)).len(), 100_000);
        b.close(far()).unwrap();
        closing.join().unwrap().unwrap();
    });
}

#[test]
fn closing_wakes_the_other_threads_of_this_rank() {
    let (a, b) = pair(|_| {});
    thread::scope(|scope| {
        let waits = scope.spawn(|| a.recv(1, Tag(1), &mut Vec::new(), far()).unwrap_err());
        let closing = scope.spawn(|| a.close(far()));
        assert!(matches!(waits.join().unwrap().cause, Cause::Aborted { .. }));
        b.close(far()).unwrap();
        closing.join().unwrap().unwrap();
    });
}

#[test]
fn calls_that_cannot_hold_say_why() {
    let (a, _b) = pair(|config| config.max_message_bytes = 100);
    assert!(matches!(
        a.send(1, Tag(0), vec![0; 101]).unwrap_err().cause,
        Cause::TooLong { bytes: 101, limit: 100 }
    ));
    assert!(
        a.send(5, Tag(0), vec![])
            .unwrap_err()
            .to_string()
            .contains("no link to that rank; connect was given [1]")
    );
    assert!(
        matches!(a.close(soon()).unwrap_err().cause, Cause::Deadline { .. }),
        "the peer has said no goodbye"
    );
}

#[test]
fn strangers_cost_a_closed_socket_and_ranks_connect_all_the_same() {
    let upper = Mesh::bind(config(1, 2)).unwrap();
    let lower = Mesh::bind(config(0, 2)).unwrap();
    let door = upper.address();
    let peers = [(0, lower.address()), (1, door)];
    let silent = TcpStream::connect(door).unwrap();
    let mut garbage = TcpStream::connect(door).unwrap();
    garbage.write_all(&[0xa5; 4096]).unwrap();
    let mut wrong_key = config(0, 2);
    wrong_key.key = JobKey::new([8; 32]);
    let impostor = Mesh::bind(wrong_key).unwrap();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| upper.connect(&peers, far()).unwrap());
        let refused = scope
            .spawn(|| impostor.connect(&peers, Instant::now() + Duration::from_millis(500)).unwrap_err());
        // The listener is at work: whatever is knocking is being answered.
        let mut answer = Vec::new();
        let _ = garbage.read_to_end(&mut answer);
        assert!(answer.len() <= 40, "a stranger is told a nonce, got {} B", answer.len());
        let MeshError::Connect { missing, .. } = refused.join().unwrap() else { panic!("another error") };
        assert!(missing.contains("rank 1") && missing.contains("another job key"), "{missing}");
        let lower = lower.connect(&peers, far()).unwrap();
        let upper = accepting.join().unwrap();
        lower.send(1, Tag(0), vec![1]).unwrap();
        assert_eq!(take(&upper, 0, Tag(0)), [1]);
    });
    drop(silent);
}

#[test]
fn ranks_that_never_come_are_named_at_the_deadline() {
    let builder = Mesh::bind(config(1, 3)).unwrap();
    let dead_end = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = builder.connect(&[(0, dead_end), (2, dead_end)], soon()).unwrap_err().to_string();
    assert!(error.contains("rank 0 has not dialled"), "{error}");
    assert!(error.contains(&format!("rank 2 at {dead_end}: ")), "{error}");
}

#[test]
fn a_link_survives_garbage_only_as_a_named_error() {
    // A rank that proves itself and then breaks the protocol: two meshes, one of which has another message limit.
    let (a, b) = {
        let builders = [100, 1_000].map(|max_message_bytes| {
            let mut config = config(if max_message_bytes == 100 { 0 } else { 1 }, 2);
            config.max_message_bytes = max_message_bytes;
            Mesh::bind(config).unwrap()
        });
        let peers = [(0, builders[0].address()), (1, builders[1].address())];
        let [lower, upper] = builders;
        thread::scope(|scope| {
            let lower = scope.spawn(|| lower.connect(&peers, far()).unwrap());
            let upper = upper.connect(&peers, far()).unwrap();
            (lower.join().unwrap(), upper)
        })
    };
    b.send(0, Tag(1), vec![0; 500]).unwrap();
    let error = a.recv(1, Tag(1), &mut Vec::new(), far()).unwrap_err();
    assert!(error.to_string().ends_with("message is 500 B, at most 100 B are taken"), "{error}");
}

// -- on an emulated network: asserted on stamped times, never on this machine's ------------------------------------

fn shape(dir: &std::path::Path, rates_bytes_per_s: &[f64], routes: Vec<RouteSpec>) -> Shape {
    let named = |(i, &rate_bytes_per_s)| ResourceSpec { name: format!("nic {i}"), rate_bytes_per_s };
    let resources = rates_bytes_per_s.iter().enumerate().map(named).collect();
    Shape::open(&ShapeSpec { resources, routes }, &dir.join("clocks")).unwrap()
}

fn route(from: u32, to: u32, resources: Vec<usize>, latency_s: f64) -> RouteSpec {
    RouteSpec { from, to, resources, latency_s, loss: 0.0 }
}

fn one_way(dir: &std::path::Path, rate_bytes_per_s: f64, latency_s: f64) -> Shape {
    shape(dir, &[rate_bytes_per_s], vec![route(0, 1, vec![0], latency_s)])
}

/// Sends `bytes` from rank 0 and returns when it was handed over, at the earliest and the latest, and when it was
/// delivered, in nanoseconds.
fn timed(a: &Mesh, b: &Mesh, bytes: usize) -> (u64, u64, u64) {
    let before_ns = monotonic_ns();
    a.send(b.rank(), Tag(1), vec![0; bytes]).unwrap();
    let after_ns = monotonic_ns();
    let delivered_ns = b.recv_stamped(a.rank(), Tag(1), &mut Vec::new(), far()).unwrap();
    assert!(monotonic_ns() >= delivered_ns, "handed over before it was delivered");
    (before_ns, after_ns, delivered_ns)
}

#[test]
fn a_narrow_link_takes_bytes_over_rate_plus_latency() {
    let dir = tempfile::tempdir().unwrap();
    // 10 Mbit/s and 20 ms carry 1 MB in 820 ms.
    let (a, b) = pair(|config| config.shape = Some(one_way(dir.path(), 1.25e6, 0.02)));
    let (before_ns, after_ns, delivered_ns) = timed(&a, &b, 1_000_000);
    assert!((before_ns + 820_000_000..=after_ns + 820_000_000).contains(&delivered_ns));
    // The way back has no route: it is not shaped.
    b.send(0, Tag(2), vec![1]).unwrap();
    assert_eq!(a.recv_stamped(1, Tag(2), &mut Vec::new(), far()).unwrap(), 0);
}

#[test]
fn messages_follow_each_other_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(|config| config.shape = Some(one_way(dir.path(), 10e6, 0.005)));
    (0..20).for_each(|_| a.send(1, Tag(1), vec![0; 100_000]).unwrap());
    let stamps: Vec<u64> =
        (0..20).map(|_| b.recv_stamped(0, Tag(1), &mut Vec::new(), far()).unwrap()).collect();
    assert!(stamps.windows(2).all(|two| two[1] - two[0] == 10_000_000), "{stamps:?}");
}

#[test]
fn two_ranks_of_one_host_share_its_card() {
    let dir = tempfile::tempdir().unwrap();
    // Ranks 0 and 1 leave through one card of 10 MB/s; rank 2 has a card for each.
    let routes = vec![route(0, 2, vec![0, 1], 0.0), route(1, 2, vec![0, 2], 0.0)];
    let all =
        meshes(3, |config| config.shape = Some(shape(dir.path(), &[10e6, 100e6, 100e6], routes.clone())));
    let before_ns = monotonic_ns();
    all[0].send(2, Tag(1), vec![0; 1_000_000]).unwrap();
    all[1].send(2, Tag(1), vec![0; 1_000_000]).unwrap();
    let after_ns = monotonic_ns();
    let stamps = [0, 1].map(|from| all[2].recv_stamped(from, Tag(1), &mut Vec::new(), far()).unwrap());
    let (first_ns, last_ns) = (stamps[0].min(stamps[1]), stamps[0].max(stamps[1]));
    // Together 2 MB at 10 MB/s without a gap, to the rounding of 123 chunks; alone the first would take 100 ms.
    assert!(
        (before_ns + 200_000_000..=after_ns + 200_000_200).contains(&last_ns),
        "{} ns",
        last_ns - before_ns
    );
    assert!(first_ns >= before_ns + 100_000_000, "{} ns", first_ns - before_ns);
}

#[test]
fn flush_waits_until_the_line_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let (a, _b) = pair(|config| config.shape = Some(one_way(dir.path(), 1e6, 0.0)));
    let before_ns = monotonic_ns();
    a.send(1, Tag(1), vec![0; 50_000]).unwrap();
    a.flush(far()).unwrap();
    assert!(monotonic_ns() >= before_ns + 50_000_000);
}

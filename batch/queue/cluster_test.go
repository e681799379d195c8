package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"glimpse/batch/row"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// threeNodes starts a JetStream cluster of three on this machine.
func threeNodes(t *testing.T) (nodes []*server.Server, addresses string) {
	t.Helper()
	for begin := time.Now(); nodes == nil; {
		if time.Since(begin) > patience {
			t.Fatal("three nodes do not start")
		}
		nodes = startNodes(t)
	}
	var list []string
	for _, s := range nodes {
		list = append(list, s.ClientURL())
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		for _, s := range nodes {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == len(nodes) { // only the leader knows them
				return nodes, strings.Join(list, ",")
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the cluster does not come together")
		}
	}
}

// startNodes is nil where another program took one of the ports that were chosen.
func startNodes(t *testing.T) (nodes []*server.Server) {
	t.Helper()
	// A node of a cluster wants to know the others before it starts: their ports are chosen first.
	var routes []*url.URL
	var ports []int
	var held []net.Listener
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		held = append(held, l)
	}
	for _, l := range held {
		l.Close()
	}
	for i := range 3 {
		o := &server.Options{ServerName: fmt.Sprintf("node-%d", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(),
			NoSigs: true, NoLog: true, Routes: routes, Cluster: server.ClusterOpts{Name: "three", Host: "127.0.0.1", Port: ports[i]}}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		nodes = append(nodes, s)
	}
	for _, s := range nodes {
		if !s.ReadyForConnections(15 * time.Second) {
			for _, s := range nodes {
				s.Shutdown()
			}
			return nil
		}
	}
	return nodes
}

// patience is for a machine with much other work: what is waited for comes, and the test goes on when it does.
const patience = 3 * time.Minute

// With three copies a node may go away for good in the middle of a job: nothing is lost, and nothing is answered wrongly.
// Elections take long on a machine with much other work, so that it is one of `make test-queue`.
func TestClusterOfThreeLosesANode(t *testing.T) {
	if os.Getenv("GLIMPSE_QUEUE_CLUSTER") == "" {
		t.Skip("wants the machine for itself: make test-queue")
	}
	nodes, addresses := threeNodes(t)
	o := Options{URL: addresses, Replicas: 3, AckWait: 2 * time.Second, fetchWithin: 3 * time.Second}
	c := client(t, o, "job")
	defer c.Close()
	for _, name := range []string{WorkStream, ResultStream, DeadStream, "OBJ_" + objectBucket, "KV_" + jobBucket} {
		var stream jetstream.Stream
		err := c.setUp(t.Context(), name, nil, func(ctx context.Context) (err error) { stream, err = c.js.Stream(ctx, name); return err })
		if err != nil {
			t.Fatal(err)
		}
		if n := stream.CachedInfo().Config.Replicas; n != 3 {
			t.Errorf("%s has %d copies", name, n)
		}
	}
	var answered atomic.Int64
	handle := func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		if answered.Add(1) == 20 { // the node that this client talks to, or another
			go func() { nodes[1].Shutdown() }()
		}
		return echo(ctx, ask, task)
	}
	working(t, o, Worker{Name: "one", Parallel: 2, Handle: handle})
	working(t, o, Worker{Name: "two", Parallel: 2, Handle: handle})
	askAll(t.Context(), t, c, 60, 12)
	if answered.Load() < 60 {
		t.Errorf("%d answers", answered.Load())
	}
	nodes[1].WaitForShutdown() // it was told to, in the middle
	if err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty(t, o)
}

// One server cannot keep three copies, and says so.
func TestCopiesNeedACluster(t *testing.T) {
	s := serve(t, t.TempDir(), "")
	_, err := NewClient(t.Context(), Options{InProcess: s, Replicas: 3}, Job{ID: "job"})
	if err == nil || !strings.Contains(err.Error(), "replicas") {
		t.Errorf("error %v", err)
	}
}

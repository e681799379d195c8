// A NATS server in this process.

package queue

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Server is an embedded NATS server with JetStream.
type Server struct {
	server      *server.Server
	closeSocket func() // nil: there is none
}

// ServerOptions say where it listens and stores.
type ServerOptions struct {
	Listen string // host:port for workers of other processes; port 0: a free one; "": nobody else can join
	Dir    string // where streams lie; required
	Token  string // what clients must say; required unless Listen is a loopback address
	// Sync makes every message durable before it is acknowledged, at the price of a disk's latency each. Without it a
	// machine that loses power loses what came in the last seconds; a process that is killed loses nothing either way.
	Sync bool
}

// StartServer starts a server.
func StartServer(o ServerOptions) (*Server, error) {
	options := &server.Options{
		ServerName: "glimpse", JetStream: true, StoreDir: o.Dir, DontListen: o.Listen == "", NoSigs: true, NoLog: true,
		Authorization: o.Token, SyncAlways: o.Sync, MaxPayload: 8 << 20,
	}
	if o.Listen != "" {
		host, port, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", o.Listen, err)
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: the port is no number", o.Listen)
		}
		if number == 0 {
			number = server.RANDOM_PORT
		}
		if ip := net.ParseIP(host); o.Token == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("listen on %s: a queue that other machines reach needs a token", o.Listen)
		}
		options.Host, options.Port = host, number
	}
	s, err := server.NewServer(options)
	if err != nil {
		return nil, fmt.Errorf("start the queue's server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("start the queue's server: %w (is the port of %q taken?)", errors.New("it was not ready after 20 s"), o.Listen)
	}
	return &Server{server: s}, nil
}

// URL is where workers join; "" where nobody can.
func (s *Server) URL() string {
	address, ok := s.server.Addr().(*net.TCPAddr)
	if !ok || address == nil {
		return ""
	}
	u := url.URL{Scheme: "nats", Host: address.String()}
	return u.String()
}

// Close stops the server; closing nil or again is harmless.
func (s *Server) Close() {
	if s == nil {
		return
	}
	if s.closeSocket != nil {
		s.closeSocket()
		s.closeSocket = nil
	}
	s.server.Shutdown()
	s.server.WaitForShutdown()
}

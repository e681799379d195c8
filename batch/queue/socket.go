// A way to the server of a run that opens no port: a Unix socket beside its streams, for `glimpse queue status`.

package queue

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// longestSocket is how long the address of a Unix socket may be; Linux takes 107 bytes.
const longestSocket = 100

// socketAddress makes an address of a path that may be longer than one. The folder is closed when the address is not needed
// any more.
func socketAddress(path string) (address string, folder io.Closer, err error) {
	if len(path) <= longestSocket {
		return path, io.NopCloser(nil), nil
	}
	f, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(f.Fd())), filepath.Base(path)), f, nil
}

// dialSocket is a nats.CustomDialer that goes to a socket whatever it is asked for.
type dialSocket struct{ path string }

// Dial implements nats.CustomDialer.
func (d dialSocket) Dial(string, string) (net.Conn, error) { return DialSocket(d.path) }

// DialSocket connects to what ServeSocket serves.
func DialSocket(path string) (net.Conn, error) {
	address, folder, err := socketAddress(path)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return net.Dial("unix", address)
}

// ServeSocket lets clients of this machine and user in through a Unix socket until the server closes. What a killed run left
// in its place is replaced.
func (s *Server) ServeSocket(path string) error {
	_ = os.Remove(path)
	address, folder, err := socketAddress(path)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		folder.Close()
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false) // its name may be one of this process alone
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		folder.Close()
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			inside, err := s.server.InProcessConn()
			if err != nil {
				client.Close()
				continue
			}
			serving.Go(func() { join(ctx, client, inside) })
		}
	})
	s.closeSocket = func() {
		cancel()
		listener.Close()
		serving.Wait()
		_ = os.Remove(path)
		folder.Close()
	}
	return nil
}

// join copies both ways until either side ends, or ctx does.
func join(ctx context.Context, a, b net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var copying sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		copying.Go(func() {
			defer cancel()
			_, _ = io.Copy(pair[0], pair[1])
		})
	}
	<-ctx.Done()
	a.Close()
	b.Close()
	copying.Wait()
}

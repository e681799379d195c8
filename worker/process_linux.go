// What of a child process is Linux's own.

package worker

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// CanMeasure says whether the memory of a process can be read.
const CanMeasure = true

// attributes: the child gets a process group of its own, for Ctrl-C is the front process's business, and dies with the
// thread that started it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// residentBytes is the memory that a process holds; an error when there is no such process.
func residentBytes(pid int) (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, fmt.Errorf("measure process %d: %w", pid, err)
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 2 {
		return 0, fmt.Errorf("measure process %d: statm is %q", pid, raw)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("measure process %d: %w", pid, err)
	}
	return pages * int64(os.Getpagesize()), nil
}

// checkPeer wants the process pid at the other end.
func checkPeer(conn *net.UnixConn, pid int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("check the worker's connection: %w", err)
	}
	var cred *syscall.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return fmt.Errorf("check the worker's connection: %w", err)
	}
	if failed != nil {
		return fmt.Errorf("check the worker's connection: %w", failed)
	}
	if int(cred.Pid) != pid {
		return fmt.Errorf("process %d connected to the socket of worker %d", cred.Pid, pid)
	}
	return nil
}

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// firstInherited is the first descriptor that a service manager passes on, see
// sd_listen_fds(3).
const firstInherited = 3

// socketVariables say what was passed on, and to whom.
var socketVariables = []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

// socket is a listening socket that somebody else has bound and keeps open, so
// that connections wait in it while there is no process to accept them.
type socket struct {
	name     string // of FileDescriptorName=, or whatever it is
	listener net.Listener
}

// inheritedSockets takes over the sockets that the environment says were passed
// to this process, none where it was started without, and forgets that it did:
// a child would take them for its own.
func inheritedSockets(env func(string) (string, bool)) ([]socket, error) {
	pid, _ := env("LISTEN_PID")
	count, _ := env("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) || count == "" || count == "0" {
		return nil, nil
	}
	list, _ := env("LISTEN_FDNAMES")
	for _, name := range socketVariables {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	n, err := strconv.ParseUint(count, 10, 8)
	if errors.Is(err, strconv.ErrRange) {
		return nil, fmt.Errorf("LISTEN_FDS: %s are too many sockets; pass one for each listener, proxy and control", count)
	}
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS: %q is no number of sockets", count)
	}
	names := strings.Split(list, ":")
	var sockets []socket
	for i := range int(n) {
		s := socket{name: "unknown"}
		if i < len(names) && names[i] != "" {
			s.name = names[i]
		}
		if s.listener, err = inheritSocket(firstInherited+i, s.name); err != nil {
			closeSockets(sockets)
			return nil, fmt.Errorf("LISTEN_FDS: socket %d, %q: %w", i+1, s.name, err)
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// inheritSocket makes a listener of a descriptor, which it closes.
func inheritSocket(descriptor int, name string) (net.Listener, error) {
	syscall.CloseOnExec(descriptor)
	f := os.NewFile(uintptr(descriptor), name)
	if f == nil {
		return nil, errors.New("is no descriptor")
	}
	defer f.Close()
	listening, err := syscall.GetsockoptInt(descriptor, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no socket: %w; pass listening sockets alone, without a gap from descriptor %d on, as many as LISTEN_FDS says", descriptor, err, firstInherited)
	}
	if listening == 0 {
		return nil, errors.New("does not listen; write ListenStream= and Accept=no in the socket unit")
	}
	return net.FileListener(f)
}

func closeSockets(sockets []socket) {
	for _, s := range sockets {
		_ = s.listener.Close()
	}
}

// place is one listener of the configuration and the socket found for it.
type place struct {
	name        string       // "proxy" or "control"
	key, listen string       // where the configuration has the address, and the address
	listener    net.Listener // nil until there is one
}

// bind makes the listener of a place for which there was no socket.
func (p *place) bind() (err error) {
	if p.listener != nil {
		return nil
	}
	if p.listener, err = net.Listen("tcp", p.listen); err != nil {
		return fmt.Errorf("%s: %w; free the address or change it", p.key, err)
	}
	return nil
}

func closePlaces(places []*place) {
	for _, p := range places {
		if p.listener != nil {
			_ = p.listener.Close()
		}
	}
}

// seat gives every socket to the place that it is for: of its name, else of its
// address, else, if as many are left of each, in order. A socket that fits
// nowhere is an error: its clients would wait for ever.
func seat(sockets []socket, places []*place) error {
	free := func(fits func(*place) bool) *place {
		i := slices.IndexFunc(places, func(p *place) bool { return p.listener == nil && fits(p) })
		if i < 0 {
			return nil
		}
		return places[i]
	}
	take := func(fits func(socket, *place) bool) {
		sockets = slices.DeleteFunc(slices.Clone(sockets), func(s socket) bool {
			p := free(func(p *place) bool { return fits(s, p) })
			if p != nil {
				p.listener = s.listener
			}
			return p != nil
		})
	}
	take(func(s socket, p *place) bool { return s.name == p.name })
	take(func(s socket, p *place) bool { return isAddress(p.listen, s.listener.Addr()) })
	unseated := 0
	for _, p := range places {
		if p.listener == nil {
			unseated++
		}
	}
	if len(sockets) == unseated && !slices.ContainsFunc(sockets, isReserved) {
		take(func(socket, *place) bool { return true })
	}
	if len(sockets) == 0 {
		return nil
	}
	s := sockets[0]
	return fmt.Errorf("the inherited socket %q on %s is for no listener: give its unit FileDescriptorName=proxy or control, one of each at most, or its address to a listener that is on", s.name, s.listener.Addr())
}

// isReserved says whether a socket is named for a listener, which no other gets.
func isReserved(s socket) bool { return s.name == "proxy" || s.name == "control" }

// isAddress says whether a socket at addr is what listening on listen makes.
func isAddress(listen string, addr net.Addr) bool {
	bound, ok := addr.(*net.TCPAddr)
	if !ok {
		return false
	}
	want, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil || want.Port != bound.Port {
		return false
	}
	anywhere := want.IP == nil || want.IP.IsUnspecified()
	return want.IP.Equal(bound.IP) || anywhere && bound.IP.IsUnspecified()
}

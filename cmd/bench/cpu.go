package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/millracehq/millrace/internal/engine/broker"
)

// cpu is the CPU time in seconds of this process, and of the servers that it uses with
// all their processes. It is 0 for a server on another machine or in a container.
type cpu struct{ bench, postgres, broker float64 }

func (c cpu) since(before cpu) cpu {
	return cpu{c.bench - before.bench, c.postgres - before.postgres, c.broker - before.broker}
}

// cpu returns the CPU time used so far.
func (s *site) cpu() cpu {
	running := processes()
	now := cpu{bench: ownCPU()}

	if address, err := url.Parse(string(s.cfg.Postgres.URL)); err == nil {
		now.postgres = running.tree(listener(address.Port()))
	}

	switch s.cfg.Broker.Kind {
	case broker.Kafka:
		_, port, _ := strings.Cut(s.cfg.Broker.Kafka.Brokers[0], ":")
		now.broker = running.tree(listener(port))
	case broker.RabbitMQ:
		if address, err := url.Parse(string(s.cfg.Broker.RabbitMQ.URL)); err == nil {
			now.broker = running.tree(listener(address.Port()))
		}
	}

	return now
}

func ownCPU() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}

	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

	return seconds(usage.Utime) + seconds(usage.Stime)
}

// processTable maps the id of each process to its parent's and to its CPU time, which
// includes that of its ended children.
type processTable map[int]struct {
	parent int
	used   float64
}

// ticks is the number of clock ticks in a second (proc(5)).
const ticks = 100

func processes() processTable {
	table := processTable{}

	paths, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is valid
	for _, path := range paths {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // the process has exited
		}

		// pid (name) state parent ...: utime, stime and those of ended children are the
		// 12th to 15th after the name.
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		entry := table[0]
		entry.parent, _ = strconv.Atoi(fields[1])

		for _, field := range fields[11:15] {
			n, _ := strconv.ParseFloat(field, 64)
			entry.used += n / ticks
		}

		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		table[pid] = entry
	}

	return table
}

// tree returns the CPU time of a process and its descendants.
func (t processTable) tree(root int) float64 {
	if root == 0 {
		return 0
	}

	used := t[root].used

	for pid, entry := range t {
		if entry.parent == root {
			used += t.tree(pid)
		}
	}

	return used
}

// listener returns the process that listens on a port, or 0. Processes that inherited
// the socket have higher numbers.
func listener(port string) int {
	number, err := strconv.Atoi(port)
	if err != nil {
		return 0
	}

	sockets := listening(fmt.Sprintf(":%04X", number))
	first := 0

	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is valid
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !slices.Contains(sockets, target) {
			continue
		}

		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		if first == 0 || pid < first {
			first = pid
		}
	}

	return first
}

// listening returns the sockets that listen on a port, as links to them read.
func listening(port string) (sockets []string) {
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(path)
		if err != nil {
			continue
		}

		for line := range strings.Lines(string(table)) {
			// number, local address, remote address, state, ...; the 10th is the inode.
			fields := strings.Fields(line)
			if len(fields) > 9 && strings.HasSuffix(fields[1], port) && fields[3] == "0A" {
				sockets = append(sockets, "socket:["+fields[9]+"]")
			}
		}
	}

	return sockets
}

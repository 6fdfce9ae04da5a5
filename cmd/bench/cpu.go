package main

import (
	"context"
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

// usage is the resources used so far: the CPU seconds of this process, the replicas and
// the servers that they use, including all their processes, and the bytes of WAL. Other
// servers on the machine are not counted. The CPU time of a server on another machine or
// in a container is 0.
type usage struct{ bench, service, postgres, broker, wal float64 }

func (u usage) since(before usage) usage {
	return usage{
		u.bench - before.bench, u.service - before.service, u.postgres - before.postgres, u.broker - before.broker, u.wal - before.wal,
	}
}

// per returns the figures per message, given n messages.
func (u usage) per(n float64) figures {
	return figures{
		cpuTotal: (u.service + u.postgres + u.broker) / n * 1000, cpuService: u.service / n * 1000,
		cpuPostgres: u.postgres / n * 1000, cpuBroker: u.broker / n * 1000, walKB: u.wal / n / 1024,
	}
}

// usage returns the resources used so far.
func (s *site) usage(ctx context.Context) usage {
	now := usage{bench: ownCPU()}
	// 0 means that the request failed.
	_ = s.pool.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8`).Scan(&now.wal)

	running := processes()

	for _, p := range s.replicas {
		now.service += running.tree(p.pid())
	}

	now.postgres = running.tree(running.server(portOf(string(s.cfg.Postgres.URL))))

	switch s.cfg.Broker.Kind {
	case broker.Kafka:
		now.broker = running.tree(running.server(portOf("kafka://" + s.cfg.Broker.Kafka.Brokers[0])))
	case broker.RabbitMQ:
		now.broker = running.tree(running.server(portOf(string(s.cfg.Broker.RabbitMQ.URL))))
	}

	return now
}

// portOf returns the port of a URL, or 0.
func portOf(address string) int {
	parsed, err := url.Parse(address)
	if err != nil {
		return 0
	}

	port, _ := strconv.Atoi(parsed.Port())

	return port
}

func ownCPU() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}

	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

	return seconds(usage.Utime) + seconds(usage.Stime)
}

// processTable maps the id of each process to its name, its parent's id and its CPU time,
// which includes that of its exited children.
type processTable map[int]struct {
	name   string
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

		// pid (name) state parent ...: utime, stime and those of exited children are the
		// 12th to 15th after the name.
		start, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		entry := table[0]
		_, entry.name, _ = strings.Cut(start, " (")
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

// server returns the process that listens on a port, or 0. If several processes share
// the socket, it is the one from which the others inherited it.
func (t processTable) server(port int) int {
	sockets := listening(fmt.Sprintf(":%04X", port))
	shared := map[int]bool{}

	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is valid
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && slices.Contains(sockets, target) {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			shared[pid] = true
		}
	}

	for pid := range shared {
		// Docker's proxy listens on behalf of a server in a container.
		if !shared[t[pid].parent] && t[pid].name != "docker-proxy" {
			return pid
		}
	}

	return 0
}

// listening returns the sockets that listen on a port, in the form of links in /proc.
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

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// process is a replica of the measured service.
type process struct {
	cmd *exec.Cmd
	// http is the address of its metrics.
	http string
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// start starts replicas of the service in a role and waits until they are ready.
func (s *site) start(ctx context.Context, role string, replicas int) error {
	for range replicas {
		p, err := s.newProcess(ctx, role)
		if err != nil {
			return err
		}

		s.replicas = append(s.replicas, p)

		p.cmd.Stderr = os.Stderr
		p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }

		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return err
		}

		if err := p.cmd.Start(); err != nil {
			return err
		}

		if !bufio.NewScanner(out).Scan() {
			return errors.Join(errors.New("the service exited before it was ready"), p.cmd.Wait())
		}
	}

	return nil
}

// newProcess returns a process that has not been started. All roles but FastStream run
// this program.
func (s *site) newProcess(ctx context.Context, role string) (*process, error) {
	if role == fastStreamRole {
		return s.newFastStream(ctx)
	}

	self, err := os.Executable()
	if err != nil {
		return nil, err
	}

	p := &process{}
	if p.http, err = freeAddress(); err != nil {
		return nil, err
	}

	spec, err := json.Marshal(childSpec{Role: role, URL: string(s.cfg.Postgres.URL), Group: s.name, Kind: s.cfg.Broker.Kind, HTTP: p.http, Traces: s.traces})
	p.cmd = exec.CommandContext(ctx, self, "child", string(spec))

	if s.traces == "" { // whatever the benchmark's environment says
		p.cmd.Env = append(os.Environ(), "OTEL_SDK_DISABLED=true")
	}

	return p, err
}

// freeAddress returns an unused address on loopback.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}

	return listener.Addr().String(), listener.Close()
}

// stop stops the replicas and returns their highest peak memory in MB.
func (s *site) stop() (peak float64, err error) {
	for _, p := range s.replicas {
		peak = max(peak, memory(p.pid(), "VmHWM"))

		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return 0, err
		}
	}

	for _, p := range s.replicas {
		if err := p.cmd.Wait(); err != nil {
			return 0, err
		}
	}

	s.replicas = nil

	return peak, nil
}

// memory returns a value of a process's memory in MB: VmRSS, or VmHWM for its peak.
func memory(pid int, name string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}

	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)

			return kb / 1024
		}
	}

	return 0
}

// meanBatch returns the mean number of messages per transaction, from the metrics of
// the replicas. Other services have no metrics, and apply one message at a time.
func (s *site) meanBatch(ctx context.Context) float64 {
	var sum, count float64

	for _, p := range s.replicas {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.http+"/metrics", nil)
		if err != nil {
			return 0
		}

		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 1
		}

		for scanner := bufio.NewScanner(response.Body); scanner.Scan(); {
			name, value, _ := strings.Cut(scanner.Text(), " ")
			number, _ := strconv.ParseFloat(value, 64)

			switch {
			case strings.HasPrefix(name, "millrace_batch_size_sum"):
				sum += number
			case strings.HasPrefix(name, "millrace_batch_size_count"):
				count += number
			}
		}

		_ = response.Body.Close()
	}

	return sum / max(count, 1)
}

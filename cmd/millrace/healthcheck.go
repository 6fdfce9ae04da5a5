package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/health"
)

// probes maps the names of probes to their paths.
var probes = map[string]string{"live": "/livez", "ready": "/readyz", "started": "/startupz"}

// probed is a probe's answer.
type probed struct {
	Status   string           `json:"status"`
	Troubles []health.Trouble `json:"troubles,omitempty"`
}

func newHealthcheck(opts *options) *cobra.Command {
	var timeout time.Duration

	return command(opts, &cobra.Command{
		Use: "healthcheck PROBE", Short: "Check whether the service at health.addr is live, ready or started",
		Long: `Check whether the service at health.addr is live, ready or started, and print what is
wrong. The command connects to neither Postgres nor a broker. Use it as a container's
probe, since the image has no shell.

Exit code 0 if the probe succeeds; 1 if it fails or the service does not respond in time.`,
		Example: "  millrace healthcheck ready",
	}, func(c *call) error {
		path, known := probes[c.args[0]]
		if !known {
			return event.Errorf(event.Unknown, "unknown probe %s, expected live, ready or started", c.args[0])
		}

		cfg, err := opts.load()
		if err != nil {
			return err
		}

		ctx, cancel := context.WithTimeout(c.ctx, timeout)
		defer cancel()

		answer, err := askProbe(ctx, cfg.Health.Addr, path)
		if answer.Status != "" {
			err = errors.Join(c.print(answer, func(w io.Writer) {
				fmt.Fprintln(w, answer.Status)
				writeTroubles(w, answer.Troubles)
			}), err)
		}

		return err
	}, func(_ *options, flags *pflag.FlagSet) {
		flags.DurationVar(&timeout, "timeout", 3*time.Second, "give up after this long")
	})
}

// askProbe returns a probe's response, and an error unless the probe succeeded.
func askProbe(ctx context.Context, addr, path string) (answer probed, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+check.Dialable(addr)+path, nil)
	if err != nil {
		return answer, err
	}

	// The default transport would use a proxy from the environment.
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return answer, fmt.Errorf("no service is responding at health.addr %s: %w", addr, err)
	}
	defer response.Body.Close()

	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Status == "" {
		return probed{}, fmt.Errorf("unexpected response from the program at health.addr %s: %s", addr, response.Status)
	}

	if response.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("%s: the service returned %s", path, response.Status)
	}

	return answer, nil
}

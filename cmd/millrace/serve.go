package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/config"
)

func newServe(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "serve", Short: "Run the service",
		Long: `Run the service. SIGINT or SIGTERM drains it: it stops taking messages, finishes
those in progress and publishes their events. A second signal stops it immediately.`,
		Example: "  millrace serve --config production.yaml",
	}, func(c *call) error {
		cfg, err := opts.load()
		if err != nil {
			return err
		}

		return runService(c.ctx, cfg, func(*app.Service) {})
	})
}

// runService runs a service until ctx ends. It calls started once the service is ready.
func runService(ctx context.Context, cfg config.Config, started func(*app.Service)) error {
	service, release, err := assemble(cfg)
	if err != nil {
		return err
	}
	defer release()

	logger := newLogger(cfg)

	if links := config.ServiceLinks(); len(links) > 0 {
		logger.Info("ignoring the platform's variables for services named millrace", slog.Any("variables", links))
	}

	if err := cfg.Warn(); err != nil {
		logger.Warn("the configuration has settings that are unsafe on an open network or do nothing", slog.Any("error", err))
	}

	return service.Run(ctx, func() { started(service) })
}

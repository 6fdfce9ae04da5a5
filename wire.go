//go:build wireinject

package millrace

import (
	"log/slog"

	"github.com/google/wire"

	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/upkeep"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/audit"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/shop/user"
	"github.com/millracehq/millrace/internal/telemetry"
)

// New assembles a service. Nothing connects before Run. Call the returned
// function after Run to release the service's resources.
func New(cfg config.Config, logger *slog.Logger) (*app.Service, func(), error) {
	panic(wire.Build(
		wire.FieldsOf(new(config.Config), "Postgres", "Broker", "Consumer", "Inbox", "Outbox", "Payment", "Failed", "Fulfilment",
			"User", "Notification", "Analytics", "Upkeep", "Health", "HTTP", "Traces"),
		config.Warnings,
		telemetry.NewRegistry,
		telemetry.NewTracer,
		postgres.NewPool,
		broker.NewSet,
		failed.NewStore,
		breaker.NewSet,
		outbox.NewRelay,
		consumer.NewRouter,
		consumer.NewAppend,
		consumer.NewStalled,
		consumer.NewUndelivered,
		httpapi.NewServer,

		order.NewService,
		inventory.NewService,
		payment.NewGateway,
		payment.NewWebhook,
		fulfilment.NewProcess,
		fulfilment.NewSweeper,

		user.NewService,
		account.NewDirectory,
		notification.NewService,
		account.New,
		analytics.NewService,

		audit.New,
		upkeep.New,
		wire.Struct(new(app.Engine), "*"),
		wire.Struct(new(app.Upkeep), "*"),
		wire.Struct(new(app.Domains), "*"),
		app.NewService,
	))
}

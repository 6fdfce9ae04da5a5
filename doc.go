// Package millrace assembles the service: an event processor for orders, inventory and
// payments that consumes messages from Kafka, RabbitMQ or Postgres alone, applies each to
// Postgres exactly once in effect, in order per key, and publishes the resulting events.
//
// google/wire assembles it at build time: wire.go lists the providers, and `make
// generate` writes wire_gen.go.
package millrace

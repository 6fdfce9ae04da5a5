// Package millrace assembles the service: an event processor for orders,
// inventory and payments that applies each message from Kafka, RabbitMQ or
// Postgres alone to Postgres exactly once in effect, in order per key, and
// publishes what follows.
//
// google/wire assembles it at build time: wire.go lists the providers, and `make
// generate` writes wire_gen.go.
package millrace

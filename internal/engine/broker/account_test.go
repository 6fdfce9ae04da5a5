package broker_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// secured is a Kafka with accounts and access control.
type secured struct {
	*testing.T

	// open is for administrators, and needs no account.
	open  harness
	admin sarama.ClusterAdmin
	// address demands an account.
	address string
}

func newSecured(t *testing.T) *secured {
	t.Helper()

	address := "127.0.0.1:" + pgtest.FreePort(t)
	server := brokertest.NewKafka(t,
		"listeners=PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@NEXT@,SASL_PLAINTEXT://"+address,
		"advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SASL_PLAINTEXT://"+address,
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
		"sasl.enabled.mechanisms=SCRAM-SHA-512",
		"listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS")

	s := &secured{T: t, open: kafkaHarness("127.0.0.1:" + server.Port), address: address}
	s.admin = admin(t, s.open.config)

	_, err := s.admin.UpsertUserScramCredentials([]sarama.AlterUserScramCredentialsUpsert{{
		Name: "millrace", Mechanism: sarama.SCRAM_MECHANISM_SHA_512, Iterations: 4096, Salt: []byte("salt"), Password: []byte("right"),
	}})
	must(t, err)

	return s
}

// allow lets the account do something.
func (s *secured) allow(kind sarama.AclResourceType, name string, operations ...sarama.AclOperation) {
	s.Helper()

	acls := make([]*sarama.Acl, len(operations))
	for i, operation := range operations {
		acls[i] = &sarama.Acl{Principal: "User:millrace", Host: "*", Operation: operation, PermissionType: sarama.AclPermissionAllow}
	}

	must(s, s.admin.CreateACLs([]*sarama.ResourceAcls{{
		Resource: sarama.Resource{ResourceType: kind, ResourceName: name, ResourcePatternType: sarama.AclPatternLiteral}, Acls: acls,
	}}))
}

// account returns a harness with an account.
func (s *secured) account(password postgres.Secret) harness {
	h := kafkaHarness(s.address)
	h.config.Kafka.User, h.config.Kafka.Password = "millrace", password

	return h
}

// TestAccountsOnKafka runs against one Kafka, because each takes a while to start.
func TestAccountsOnKafka(t *testing.T) {
	t.Parallel()

	s := newSecured(t)

	for name, test := range map[string]func(*testing.T, *secured){
		"an account that may not create topics uses those that exist": usesWhatExists,
		"an account that may not join a group is named":               namesTheGroup,
		"a revoked topic delays no other":                             delaysNoOther,
		"a wrong password is named":                                   namesThePassword,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, &secured{T: t, open: s.open, admin: s.admin, address: s.address})
		})
	}
}

func usesWhatExists(t *testing.T, s *secured) {
	t.Helper()

	existing, missing := brokertest.Topic(), brokertest.Topic()
	s.open.createTopic(t, existing, defaultMaxMessageBytes)
	s.allow(sarama.AclResourceTopic, existing, sarama.AclOperationRead, sarama.AclOperationWrite, sarama.AclOperationDescribe)
	s.allow(sarama.AclResourceTopic, missing, sarama.AclOperationRead, sarama.AclOperationWrite, sarama.AclOperationDescribe)

	s.allow(sarama.AclResourceGroup, groupOf(existing), sarama.AclOperationRead)
	s.allow(sarama.AclResourceGroup, groupOf(missing), sarama.AclOperationRead)

	conn := s.account("right").open(t, existing, missing)
	received := consume(t, conn, existing, nil)
	late := consume(t, conn, missing, nil)

	pgtest.Eventually(t, "only the missing topic is named, with its remedy", func() bool {
		conn.Check(t.Context()) // which looks again: the rights take effect a little later

		refused := conn.Refusals()

		return len(refused) == 1 && refused[0].Topic == missing && strings.Contains(refused[0].Remedy(), "create the topic")
	})
	must(t, conn.Publisher().Publish(existing, newMessage("k", "1")))
	received.wait(t, 1)

	s.open.createTopic(t, missing, defaultMaxMessageBytes)
	pgtest.Eventually(t, "the topic is used once it exists", func() bool {
		conn.Check(t.Context())

		return len(conn.Refusals()) == 0 && conn.Publisher().Publish(missing, newMessage("k", "2")) == nil
	})
	late.wait(t, 1)
	must(t, conn.Close())
}

// namesTheGroup checks that a consumer that receives nothing does not count as one that
// runs.
func namesTheGroup(t *testing.T, s *secured) {
	t.Helper()

	topic := brokertest.Topic()
	s.open.createTopic(t, topic, defaultMaxMessageBytes)
	s.allow(sarama.AclResourceTopic, topic, sarama.AclOperationRead, sarama.AclOperationWrite, sarama.AclOperationDescribe)

	conn := s.account("right").open(t, topic)
	received := consume(t, conn, topic, nil)

	pgtest.Eventually(t, "the group is named with its remedy", func() bool {
		conn.Check(t.Context()) // the rights on the topic take effect a little later

		refused := conn.Refusals()

		return len(refused) == 1 && refused[0].Topic == topic && strings.Contains(refused[0].Remedy(), "READ on the consumer group "+groupOf(topic))
	})

	s.allow(sarama.AclResourceGroup, groupOf(topic), sarama.AclOperationRead)
	must(t, conn.Publisher().Publish(topic, newMessage("k", "1")))
	received.wait(t, 1)

	if refused := conn.Refusals(); len(refused) > 0 {
		t.Errorf("got %+v", refused)
	}

	must(t, conn.Close())
}

// groupOf returns the consumer group of a topic.
func groupOf(topic string) string { return broker.DefaultConfig().Kafka.Group + "." + topic }

func delaysNoOther(t *testing.T, s *secured) {
	t.Helper()

	writable, revoked := brokertest.Topic(), brokertest.Topic()

	for _, topic := range []string{writable, revoked} {
		s.open.createTopic(t, topic, defaultMaxMessageBytes)
		s.allow(sarama.AclResourceTopic, topic, sarama.AclOperationRead, sarama.AclOperationDescribe)
	}

	s.allow(sarama.AclResourceTopic, writable, sarama.AclOperationWrite)

	r := s.account("right").relay(t, writable, revoked)
	r.append(revoked, 3000, 10)
	r.append(writable, 1000, 10)

	pgtest.Eventually(t, "the other topic is published", func() bool { return r.left(writable) == 0 })
	pgtest.Eventually(t, "the topic is named with its remedy", func() bool {
		stuck := r.relay.Stuck()

		return len(stuck) == 1 && stuck[0].Topic == revoked && strings.Contains(stuck[0].Remedy, "WRITE")
	})

	s.allow(sarama.AclResourceTopic, revoked, sarama.AclOperationWrite)
	pgtest.Eventually(t, "all are published", func() bool { return r.left(revoked) == 0 })
}

func namesThePassword(t *testing.T, s *secured) {
	t.Helper()

	conn, err := broker.New(s.account("wrong").config, pgtest.Logger(t))
	must(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	connected := make(chan error, 1)

	go func() { connected <- conn.Connect(ctx, nil) }()

	pgtest.Eventually(t, "the state names the account", func() bool {
		why := conn.State().Why

		return strings.Contains(why, "refuses the account") && strings.Contains(why, "Authentication failed")
	})
	cancel()

	select {
	case <-connected:
	case <-time.After(timeout):
		t.Error("connecting does not end")
	}
}

package broker_test

import (
	"strings"
	"testing"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// secured is a Kafka server with accounts and access control.
type secured struct {
	*testing.T

	// open is for administrators, and needs no account.
	open  harness
	admin sarama.ClusterAdmin
	// address requires TLS and an account; plain, an account with PLAIN and no TLS; and
	// mutual, a certificate from authority.
	address, plain, mutual string

	authority  *brokertest.Authority
	identities *identities
}

func newSecured(t *testing.T) *secured {
	t.Helper()

	s := &secured{
		T: t, authority: brokertest.NewAuthority(t), identities: newIdentities(t),
		address: "127.0.0.1:" + pgtest.FreePort(t), plain: "127.0.0.1:" + pgtest.FreePort(t), mutual: "127.0.0.1:" + pgtest.FreePort(t),
	}
	listeners := "PLAINTEXT://127.0.0.1:@PORT@,SASL_SSL://" + s.address + ",SASL_PLAINTEXT://" + s.plain + ",SSL://" + s.mutual
	cert, key := s.authority.Issue("kafka")

	server := brokertest.NewKafka(t,
		"listeners="+listeners+",CONTROLLER://127.0.0.1:@NEXT@",
		"advertised.listeners="+listeners,
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL",
		"ssl.keystore.type=PEM", "ssl.keystore.certificate.chain="+line(cert), "ssl.keystore.key="+line(key),
		"ssl.truststore.type=PEM", "ssl.truststore.certificates="+line(s.authority.Certificate),
		"listener.name.ssl.ssl.client.auth=required",
		"sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
		"listener.name.sasl_plaintext.sasl.enabled.mechanisms=PLAIN",
		jaas("sasl_plaintext.plain", "plain.PlainLoginModule", `user_shop="right"`),
		jaas("sasl_ssl.plain", "plain.PlainLoginModule", `user_shop="right"`),
		jaas("sasl_ssl.scram-sha-256", "scram.ScramLoginModule", ""),
		jaas("sasl_ssl.scram-sha-512", "scram.ScramLoginModule", ""),
		jaas("sasl_ssl.oauthbearer", "oauthbearer.OAuthBearerLoginModule", ""),
		"listener.name.sasl_ssl.oauthbearer.sasl.server.callback.handler.class=org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler",
		"listener.name.sasl_ssl.oauthbearer.sasl.oauthbearer.jwks.endpoint.url="+s.identities.URL+"/keys",
		"listener.name.sasl_ssl.oauthbearer.sasl.oauthbearer.expected.audience=kafka",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS;User:shop;User:CN=shop")

	s.open = kafkaHarness("127.0.0.1:" + server.Port)
	s.admin = admin(t, s.open.config)

	for _, mechanism := range []sarama.ScramMechanismType{sarama.SCRAM_MECHANISM_SHA_256, sarama.SCRAM_MECHANISM_SHA_512} {
		var passwords []sarama.AlterUserScramCredentialsUpsert
		for _, user := range []string{"millrace", "shop"} {
			passwords = append(passwords, sarama.AlterUserScramCredentialsUpsert{
				Name: user, Mechanism: mechanism, Iterations: 4096, Salt: []byte("salt"), Password: []byte("right"),
			})
		}

		_, err := s.admin.UpsertUserScramCredentials(passwords)
		must(t, err)
	}

	return s
}

// line returns PEM as a property value, in which any whitespace may separate the lines.
func line(pem string) string { return strings.ReplaceAll(strings.TrimSpace(pem), "\n", " ") }

// jaas returns the property that sets how a listener checks a mechanism's logins.
func jaas(mechanism, module, options string) string {
	return "listener.name." + mechanism + ".sasl.jaas.config=org.apache.kafka.common.security." + module + " required " + options + ";"
}

// allow permits the account the given operations on a resource.
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

// tls returns a harness that trusts the authority.
func (s *secured) tls() harness {
	h := kafkaHarness(s.address)
	h.config.Kafka.TLS, h.config.Kafka.CAFile = true, brokertest.File(s, s.authority.Certificate)

	return h
}

// account returns a harness with an account.
func (s *secured) account() harness {
	h := s.tls()
	h.config.Kafka.User, h.config.Kafka.Password = "millrace", "right"

	return h
}

// TestAccountsOnKafka uses a single Kafka server, because starting one takes a while.
func TestAccountsOnKafka(t *testing.T) {
	t.Parallel()

	s := newSecured(t)
	tests := logins()
	tests["an account that cannot create topics uses those that exist"] = usesWhatExists
	tests["an account that cannot join a group is named"] = namesTheGroup
	tests["a revoked topic delays no other"] = delaysNoOther

	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			own := *s
			own.T = t
			test(t, &own)
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

	conn := s.account().open(t, existing, missing)
	received := consume(t, conn, existing, nil)
	late := consume(t, conn, missing, nil)

	pgtest.Eventually(t, "only the missing topic is named, with its remedy", func() bool {
		conn.Check(t.Context()) // Check looks again: permissions take a moment to take effect

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

// namesTheGroup checks that a consumer that receives nothing does not count as running.
func namesTheGroup(t *testing.T, s *secured) {
	t.Helper()

	topic := brokertest.Topic()
	s.open.createTopic(t, topic, defaultMaxMessageBytes)
	s.allow(sarama.AclResourceTopic, topic, sarama.AclOperationRead, sarama.AclOperationWrite, sarama.AclOperationDescribe)

	conn := s.account().open(t, topic)
	received := consume(t, conn, topic, nil)

	pgtest.Eventually(t, "the group is named with its remedy", func() bool {
		conn.Check(t.Context()) // permissions on the topic take a moment to take effect

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

	r := s.account().relay(t, writable, revoked)
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

"""The broker seam on Kafka: aiokafka, librdkafka, and the topics."""

-- One burst of a busy shop, as one transaction; the seed numbers the bursts from 1.
WITH placed AS (
    INSERT INTO orders (customer_id, status, placed_at)
    SELECT 1 + (random() * 9999)::integer, 'new', clock_timestamp() FROM generate_series(1, 20)
    RETURNING id
)
INSERT INTO order_items (order_id, line, product_id, quantity, price)
SELECT id, line, 1 + (random() * 999)::integer, line, (random() * 100)::numeric(10, 2)
  FROM placed, generate_series(1, 3) line;
-- Products change without their description, which Postgres then does not send.
UPDATE products SET stock = stock - 1, price = price * 1.01
 WHERE id IN (SELECT 1 + (random() * 999)::integer FROM generate_series(1, 10));
UPDATE orders SET status = 'shipped'
 WHERE id IN (SELECT 1 + (random() * 39999)::bigint FROM generate_series(1, 30));
-- A primary key changes; customers above 18000 have neither orders nor events.
UPDATE customers SET id = id + 1000000 WHERE id = 18000 + %(seed)s;
UPDATE customers SET tags = array_append(tags, 'active'), country = 'AT'
 WHERE id IN (SELECT 1 + (random() * 9999)::integer FROM generate_series(1, 5));
-- An order goes, and its lines with it.
DELETE FROM orders WHERE id = %(seed)s * 7;
INSERT INTO events (id, customer_id, kind, payload, happened_at)
SELECT gen_random_uuid(), 1, 'click', jsonb_build_object('burst', %(seed)s, 'n', n), now()
  FROM generate_series(1, 20) n;
DELETE FROM events WHERE id = md5('event' || %(seed)s)::uuid;
INSERT INTO page_views VALUES ('/burst/' || %(seed)s, NULL, clock_timestamp());
UPDATE page_views SET seconds = 1 WHERE path = '/burst/' || (%(seed)s - 1);
DELETE FROM page_views WHERE path = '/burst/' || (%(seed)s - 5);
